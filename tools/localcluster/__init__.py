"""A real Kubernetes on one Linux machine: control plane, kubelet, kube-proxy, DNS; without Docker, without a registry.

For tests and demonstrations. A cluster lives in a network namespace and a mount namespace of its own, so that taking it
down leaves nothing on the machine. `docs/development/cluster.md` has the picture; `cluster.Cluster` is the interface
for tests, ``python -m tools.localcluster`` the one for people.
"""
