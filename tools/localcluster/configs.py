"""The configuration files of the components, as plain data. Nothing here touches the machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tools.localcluster.layout import Layout, Network

PAUSE_IMAGE = "localhost/pause:1"
DNS_IMAGE = "localhost/coredns:1"
DOMAIN = "cluster.local"
CONTAINERD_SOCKET = "/run/containerd/containerd.sock"
KERNEL_SETTINGS = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}
"""What the kubelet wants below /proc/sys (pkg/kubelet/cm, setupKernelTunables) and sets itself when it differs. These
settings are the whole machine's, a crash would reboot it: the node sees files with these values in their place."""

Json = dict[str, Any]


def containerd(runc: str, cni_binaries: str, layout: Layout) -> str:
    """Containerd's configuration. Version 2 of the format is understood by 1.6, 1.7 and (converted) 2.x.

    ``restrict_oom_score_adj``: without CAP_SYS_RESOURCE, as in many containers and virtual machines of CI services, a
    negative oom_score_adj cannot be set, and no pod would start. ``disable_apparmor``: containerd would load a profile
    into the kernel and leave it there.
    """

    def quote(text: str) -> str:
        return json.dumps(text)

    return f"""\
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
oom_score = 0

[grpc]
  address = {quote(CONTAINERD_SOCKET)}

[plugins."io.containerd.internal.v1.opt"]
  path = "/var/lib/containerd/opt"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = {quote(PAUSE_IMAGE)}
  restrict_oom_score_adj = true
  disable_apparmor = true
  netns_mounts_under_state_dir = true
  max_container_log_line_size = 262144

[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = {quote(cni_binaries)}
  conf_dir = {quote(str(layout.configs / "cni"))}

[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "overlayfs"
  default_runtime_name = "runc"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  SystemdCgroup = false
  BinaryName = {quote(runc)}
"""


def cni(network: Network) -> Json:
    """A bridge with host-local addresses and host ports: CNI's own plugins, nothing more."""
    return {
        "cniVersion": "1.0.0",
        "name": "pods",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": True,
                "ipMasq": True,
                "hairpinMode": True,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": str(network.pods)}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True},
        ],
    }


def kubelet(layout: Layout, network: Network, *, max_open_files: int) -> Json:
    """The kubelet's configuration.

    ``failCgroupV1``: some machines have the old hierarchies only. ``oomScoreAdj`` and ``maxOpenFiles`` stay within what
    a process without CAP_SYS_RESOURCE may set. The eviction thresholds are low because the disk is shared with
    everything else on the machine; images are never removed, because there is no registry to get them back from.
    """
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": "0.0.0.0",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True, "cacheTTL": "10s"},
            "x509": {"clientCAFile": str(layout.pki / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(layout.pki / "kubelet-server.crt"),
        "tlsPrivateKeyFile": str(layout.pki / "kubelet-server.key"),
        "readOnlyPort": 0,
        "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": layout.cgroup,
        "cgroupsPerQOS": True,
        "enforceNodeAllocatable": ["pods"],
        "failCgroupV1": False,
        "failSwapOn": False,
        "oomScoreAdj": 0,
        "maxOpenFiles": max_open_files,
        "clusterDNS": [network.dns_service],
        "clusterDomain": DOMAIN,
        "resolvConf": str(layout.configs / "resolv.conf"),
        "staticPodPath": str(layout.static_pods),
        "volumePluginDir": "/var/lib/kubelet/volume-plugins",
        "syncFrequency": "10s",
        "fileCheckFrequency": "5s",
        "nodeStatusUpdateFrequency": "5s",
        "nodeStatusReportFrequency": "1m",
        "evictionHard": {
            "memory.available": "100Mi",
            "nodefs.available": "1%",
            "nodefs.inodesFree": "1%",
            "imagefs.available": "1%",
            "imagefs.inodesFree": "1%",
        },
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "maxPods": 200,
        "registryPullQPS": 0,
        "eventRecordQPS": 0,
        "logging": {"format": "text"},
    }


def kube_proxy(layout: Layout, network: Network) -> Json:
    """kube-proxy's configuration. The size of the connection table is the machine's, so it is left alone."""
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "bindAddress": "0.0.0.0",
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        "hostnameOverride": layout.node_name,
        "clusterCIDR": str(network.pods),
        "clientConnection": {"kubeconfig": str(layout.configs / "kube-proxy.kubeconfig")},
        "conntrack": {
            "maxPerCore": 0,
            "min": 0,
            "tcpEstablishedTimeout": "0s",
            "tcpCloseWaitTimeout": "0s",
        },
        "iptables": {"minSyncPeriod": "100ms", "syncPeriod": "30s"},
    }


def audit_policy() -> Json:
    """Who did what to what, without the bodies; secrets and tokens never with more than their names.

    The noise every cluster makes by itself is left out: leases, events, health checks, watches of the control plane.
    """
    core = {"group": ""}
    return {
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "omitManagedFields": True,
        "rules": [
            {"level": "None", "nonResourceURLs": ["/healthz*", "/livez*", "/readyz*", "/version", "/openapi*"]},
            {"level": "None", "resources": [{"group": "coordination.k8s.io", "resources": ["leases"]}]},
            {
                "level": "None",
                "resources": [
                    {**core, "resources": ["events"]},
                    {"group": "events.k8s.io", "resources": ["events"]},
                ],
            },
            {
                "level": "None",
                "users": [
                    "system:apiserver",
                    "system:kube-controller-manager",
                    "system:kube-scheduler",
                    "system:kube-proxy",
                ],
                "verbs": ["get", "list", "watch"],
            },
            {"level": "None", "userGroups": ["system:nodes"], "verbs": ["get", "list", "watch"]},
            {
                "level": "Metadata",
                "resources": [
                    {**core, "resources": ["secrets", "configmaps", "serviceaccounts/token"]},
                    {"group": "authentication.k8s.io", "resources": ["tokenreviews"]},
                ],
            },
            {
                "level": "Request",
                "verbs": ["create", "update", "patch", "delete", "deletecollection"],
                "resources": [
                    {"group": "rbac.authorization.k8s.io"},
                    {"group": "admissionregistration.k8s.io"},
                    {"group": "certificates.k8s.io"},
                    {"group": "apps"},
                    {"group": "batch"},
                    {**core, "resources": ["pods", "pods/ephemeralcontainers", "services", "serviceaccounts"]},
                ],
            },
            {"level": "Metadata"},
        ],
    }


def corefile() -> str:
    """CoreDNS's configuration: the cluster's names, names a test adds to ``hosts``, and nothing of the outside world.

    The pods have no way out of the machine, so that every other name is said not to exist at once instead of after a
    timeout. That answer comes from a server of its own: within one server ``template`` is asked before ``hosts`` and
    ``kubernetes``, whatever the order of the lines (plugin.cfg of CoreDNS), and would answer everything.
    """
    return f"""\
.:53 {{
    errors
    health {{
        lameduck 1s
    }}
    ready
    hosts /etc/coredns/hosts {{
        ttl 5
        reload 2s
        fallthrough
    }}
    kubernetes {DOMAIN} in-addr.arpa ip6.arpa {{
        pods insecure
        ttl 5
        fallthrough in-addr.arpa ip6.arpa
    }}
    forward . 127.0.0.1:5300
    prometheus :9153
    cache 5
    reload 5s
    loadbalance
}}
.:5300 {{
    template ANY ANY . {{
        rcode NXDOMAIN
    }}
}}
"""


def render(layout: Layout, network: Network, *, runc: str, cni_binaries: str, max_open_files: int) -> dict[Path, str]:
    """Every configuration file and its text."""

    def text(data: Json) -> str:
        return json.dumps(data, indent=1) + "\n"

    return {
        layout.configs / "containerd.toml": containerd(runc, cni_binaries, layout),
        layout.configs / "cni" / "10-pods.conflist": text(cni(network)),
        layout.configs / "kubelet.json": text(kubelet(layout, network, max_open_files=max_open_files)),
        layout.configs / "kube-proxy.json": text(kube_proxy(layout, network)),
        layout.configs / "audit-policy.json": text(audit_policy()),
        layout.configs
        / "resolv.conf": "# Pods that use the node's DNS have none: there is no way out of the machine.\n",
    }
