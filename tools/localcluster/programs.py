"""The programs of a cluster and their command lines. Nothing here touches the machine."""

from __future__ import annotations

from pathlib import Path

from tools.localcluster import simulated
from tools.localcluster.build import Components
from tools.localcluster.layout import Layout, Network
from tools.localcluster.processes import Program

ISSUER = "https://kubernetes.default.svc.cluster.local"
"""Issuer and default audience of service account tokens."""
API_PORT = 6443


def _flags(**values: object) -> list[str]:
    """Command line flags: underscores are dashes, True and False as Go writes them."""

    def text(value: object) -> str:
        if isinstance(value, bool):
            return "true" if value else "false"
        return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)

    return [f"--{name.replace('_', '-')}={text(value)}" for name, value in values.items()]


def etcd(layout: Layout, components: Components) -> Program:
    """The store of the API server, on the loopback of the cluster's network namespace.

    A crash of the machine may lose what was written last: nobody keeps such a cluster, and every write is faster.
    """
    pki = layout.pki
    return Program(
        "etcd",
        [
            str(components.etcd),
            *_flags(
                name=layout.name,
                data_dir=layout.etcd,
                listen_client_urls="https://127.0.0.1:2379",
                advertise_client_urls="https://127.0.0.1:2379",
                listen_peer_urls="http://127.0.0.1:2380",
                initial_advertise_peer_urls="http://127.0.0.1:2380",
                initial_cluster=f"{layout.name}=http://127.0.0.1:2380",
                cert_file=pki / "etcd-server.crt",
                key_file=pki / "etcd-server.key",
                client_cert_auth=True,
                trusted_ca_file=pki / "etcd-ca.crt",
                auto_compaction_retention="10m",
                snapshot_count=10000,
                unsafe_no_fsync=True,
            ),
        ],
    )


def api_server(layout: Layout, network: Network, components: Components) -> Program:
    """The API server: certificates or tokens, Node and RBAC authorization, audit log, aggregation layer."""
    pki = layout.pki
    return Program(
        "kube-apiserver",
        [
            str(components.kubernetes / "kube-apiserver"),
            *_flags(
                advertise_address=network.node,
                bind_address="0.0.0.0",
                secure_port=API_PORT,
                tls_cert_file=pki / "apiserver.crt",
                tls_private_key_file=pki / "apiserver.key",
                client_ca_file=pki / "ca.crt",
                authorization_mode="Node,RBAC",
                enable_admission_plugins="NodeRestriction",
                allow_privileged=True,
                etcd_servers="https://127.0.0.1:2379",
                etcd_cafile=pki / "etcd-ca.crt",
                etcd_certfile=pki / "apiserver-etcd-client.crt",
                etcd_keyfile=pki / "apiserver-etcd-client.key",
                kubelet_client_certificate=pki / "apiserver-kubelet-client.crt",
                kubelet_client_key=pki / "apiserver-kubelet-client.key",
                kubelet_certificate_authority=pki / "ca.crt",
                kubelet_preferred_address_types="InternalIP,Hostname",
                service_account_issuer=ISSUER,
                service_account_key_file=pki / "sa.pub",
                service_account_signing_key_file=pki / "sa.key",
                service_cluster_ip_range=network.services,
                requestheader_client_ca_file=pki / "front-proxy-ca.crt",
                requestheader_allowed_names="front-proxy-client",
                requestheader_extra_headers_prefix="X-Remote-Extra-",
                requestheader_group_headers="X-Remote-Group",
                requestheader_username_headers="X-Remote-User",
                proxy_client_cert_file=pki / "front-proxy-client.crt",
                proxy_client_key_file=pki / "front-proxy-client.key",
                enable_aggregator_routing=True,
                audit_policy_file=layout.configs / "audit-policy.json",
                audit_log_path=layout.audit_log,
                audit_log_maxsize=200,
                audit_log_maxbackup=2,
                profiling=False,
            ),
        ],
    )


def controller_manager(layout: Layout, components: Components) -> Program:
    kubeconfig = layout.configs / "controller-manager.kubeconfig"
    return Program(
        "kube-controller-manager",
        [
            str(components.kubernetes / "kube-controller-manager"),
            *_flags(
                kubeconfig=kubeconfig,
                authentication_kubeconfig=kubeconfig,
                authorization_kubeconfig=kubeconfig,
                bind_address="127.0.0.1",
                leader_elect=False,
                use_service_account_credentials=True,
                root_ca_file=layout.pki / "ca.crt",
                client_ca_file=layout.pki / "ca.crt",
                requestheader_client_ca_file=layout.pki / "front-proxy-ca.crt",
                service_account_private_key_file=layout.pki / "sa.key",
                cluster_signing_cert_file=layout.pki / "ca.crt",
                cluster_signing_key_file=layout.pki / "ca.key",
                cluster_name=layout.name,
                # The node's pods have their addresses from CNI's own configuration.
                allocate_node_cidrs=False,
                # The default is a directory below /usr, which would be made.
                flex_volume_plugin_dir=layout.root / "volume-plugins",
                profiling=False,
            ),
        ],
    )


def scheduler(layout: Layout, components: Components) -> Program:
    kubeconfig = layout.configs / "scheduler.kubeconfig"
    return Program(
        "kube-scheduler",
        [
            str(components.kubernetes / "kube-scheduler"),
            *_flags(
                kubeconfig=kubeconfig,
                authentication_kubeconfig=kubeconfig,
                authorization_kubeconfig=kubeconfig,
                bind_address="127.0.0.1",
                leader_elect=False,
                profiling=False,
            ),
        ],
    )


def containerd(layout: Layout, executable: str) -> Program:
    return Program("containerd", [executable, "--config", str(layout.configs / "containerd.toml")], in_node=True)


def kubelet(layout: Layout, network: Network, components: Components) -> Program:
    return Program(
        "kubelet",
        [
            str(components.kubernetes / "kubelet"),
            *_flags(
                config=layout.configs / "kubelet.json",
                kubeconfig=layout.configs / "kubelet.kubeconfig",
                root_dir="/var/lib/kubelet",
                hostname_override=layout.node_name,
                node_ip=network.node,
            ),
        ],
        in_node=True,
    )


def kube_proxy(layout: Layout, components: Components) -> Program:
    return Program(
        "kube-proxy",
        [str(components.kubernetes / "kube-proxy"), *_flags(config=layout.configs / "kube-proxy.json")],
        in_node=True,
    )


def kwok(layout: Layout, network: Network, executable: Path) -> Program:
    """The controller that plays the kubelets of the simulated nodes."""
    return Program(
        "kwok",
        [
            str(executable),
            *_flags(
                kubeconfig=layout.kubeconfig,
                manage_all_nodes=False,
                manage_nodes_with_annotation_selector="kwok.x-k8s.io/node=fake",
                node_lease_duration_seconds=simulated.LEASE_S,
                config=layout.configs / "stages.yaml",
                cidr=network.simulated_pods,
            ),
        ],
    )


NAMES = (
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "containerd",
    "kubelet",
    "kube-proxy",
    "kwok",
)
"""In the order in which they start."""
