"""What holds for every rendered object, and that no value can be more than a value."""

from typing import Any

import jinja2
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import nodes

from tests.unit.operator.conftest import TLS, Render, rendered
from tests.unit.operator.test_golden import CASES
from vedette_operator.errors import ManifestError, Problem
from vedette_operator.rendering import ORDER, TlsMaterial, environment, quoted, render, to_yaml
from vedette_operator.validation import problems_of
from vedette_operator.values import parse

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=60)
NASTY = [
    "quote \" and ' and `",
    "line\nkind: Pod\n---\napiVersion: v1",
    "--- \n",
    "{{ 7 * 7 }}{% if x %}{# #}",
    "key: value # comment",
    "*alias &anchor !!python/object/apply:os.system [echo]",
    "${HOME} $(NODE_NAME) %TAG",
    "yes",
    "y",
    "1e3",
    "0o17",
    "0x1F",
    "1:30",
    "2026-11-23",
    "null",
    "~",
    "=",
    "<<",
    "",
    " leading and trailing ",
    "tab\tand\u0085next line\u2028separator\ufeffmark",
    "\U0001f6e1 \u202e right to left",
    "\\u0041 \\n \\",
    "\x1b[31mred\x07",
    "|",
    ">",
    "- item",
]


# --- the security contract


def agent_pod(objects: Render, data: Any = None) -> dict[str, Any]:
    pod: dict[str, Any] = objects(data)["DaemonSet", "vedette-agent"]["spec"]["template"]["spec"]
    return pod


def detector_pod(objects: Render, data: Any = None) -> dict[str, Any]:
    pod: dict[str, Any] = objects(data)["StatefulSet", "vedette-detector"]["spec"]["template"]["spec"]
    return pod


@pytest.mark.parametrize("case", ["default", "everything", "no-network-policies"])
def test_the_agent_has_exactly_its_privileges(objects: Render, case: str) -> None:
    namespace = CASES[case][0].get("namespace", "vedette-system")
    rendered_objects = objects(CASES[case][0])
    pod = rendered_objects["DaemonSet", "vedette-agent"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    chosen = {"appArmorProfile": {"type": "Unconfined"}, "seLinuxOptions": {"type": "spc_t"}}
    assert container["securityContext"] == {
        **(chosen if case == "everything" else {}),
        "runAsUser": 60700,
        "runAsGroup": 60700,
        "runAsNonRoot": True,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"], "add": ["BPF", "PERFMON", "NET_ADMIN", "SYS_PTRACE"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    # The image's entry point must be the container's first program: it hands the capabilities on.
    assert "command" not in container
    assert "livenessProbe" not in container
    (init,) = pod["initContainers"]
    assert init["securityContext"] == {
        "runAsUser": 0,
        "runAsGroup": 0,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"], "add": ["CHOWN"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert [mount["name"] for mount in init["volumeMounts"]] == ["spool"]
    assert (pod["hostPID"], pod["hostNetwork"], pod["dnsPolicy"]) == (True, True, "ClusterFirstWithHostNet")
    assert "hostIPC" not in pod
    assert pod["automountServiceAccountToken"] is False
    assert rendered_objects["ServiceAccount", "vedette-agent"]["automountServiceAccountToken"] is False
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes["token"]["projected"]["sources"] == [
        {"serviceAccountToken": {"audience": "vedette", "expirationSeconds": 3600, "path": "token"}}
    ]
    assert {name for name, volume in volumes.items() if "hostPath" in volume} == {"spool", "cgroup"}
    assert {m["name"]: m.get("readOnly", False) for m in container["volumeMounts"]} == {
        "token": True,
        "ca": True,
        "spool": False,
        "cgroup": True,
    }
    subjects = [
        subject["name"]
        for (kind, _), content in rendered_objects.items()
        if kind in ("ClusterRoleBinding", "RoleBinding")
        for subject in content["subjects"]
    ]
    assert subjects == ["vedette-detector"]
    role = rendered_objects["ClusterRoleBinding", "vedette-detector"]
    assert role["subjects"][0]["namespace"] == namespace


def restricted_problems(pod: dict[str, Any]) -> list[str]:
    """Violations of the Pod Security Standard "restricted" (kubernetes.io, Pod Security Standards, v1.35)."""
    found = [name for name in ("hostNetwork", "hostPID", "hostIPC") if pod.get(name)]
    allowed = {
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    }
    found += [v["name"] for v in pod.get("volumes", []) if not (set(v) - {"name"}) <= allowed]
    shared = pod.get("securityContext", {})
    if shared.get("sysctls") or shared.get("runAsUser") == 0:
        found.append("pod")
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        own = container.get("securityContext", {})
        capabilities = own.get("capabilities", {})
        good = (
            own.get("allowPrivilegeEscalation") is False
            and not own.get("privileged")
            and "procMount" not in own
            and "ALL" in capabilities.get("drop", [])
            and set(capabilities.get("add", [])) <= {"NET_BIND_SERVICE"}
            and own.get("runAsNonRoot", shared.get("runAsNonRoot")) is True
            and own.get("runAsUser", shared.get("runAsUser")) != 0
            and own.get("seccompProfile", shared.get("seccompProfile"))["type"] in ("RuntimeDefault", "Localhost")
            and not any("hostPort" in port for port in container.get("ports", []))
        )
        found += [] if good else [container["name"]]
    return found


@pytest.mark.parametrize("case", ["default", "everything"])
def test_the_detector_is_restricted(objects: Render, case: str) -> None:
    pod = detector_pod(objects, CASES[case][0])
    assert restricted_problems(pod) == []
    (container,) = pod["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert (pod["securityContext"]["runAsUser"], pod["securityContext"]["fsGroup"]) == (60701, 60701)


def test_the_agent_is_not_restricted_so_the_check_can_fail(objects: Render) -> None:
    assert restricted_problems(agent_pod(objects)) == ["hostNetwork", "hostPID", "spool", "cgroup", "spool", "agent"]


def test_the_detector_may_do_exactly_this(objects: Render) -> None:
    rules = objects()["ClusterRole", "vedette-detector"]["rules"]
    assert {
        (group, what, verb) for r in rules for group in r["apiGroups"] for what in r["resources"] for verb in r["verbs"]
    } == {
        ("authentication.k8s.io", "tokenreviews", "create"),
        *(("", "pods", verb) for verb in ("get", "list", "watch")),
        *(("", "nodes", verb) for verb in ("list", "watch")),
        *(("apps", "replicasets", verb) for verb in ("list", "watch")),
        *(("batch", "jobs", verb) for verb in ("list", "watch")),
    }


def test_eviction_of_the_detector_is_never_forbidden(objects: Render) -> None:
    budget = objects()["PodDisruptionBudget", "vedette-detector"]["spec"]
    assert (budget["maxUnavailable"], "minAvailable" in budget) == (1, False)


def test_the_network_lets_agents_and_the_api_server_through(objects: Render) -> None:
    policy = objects()["NetworkPolicy", "vedette-detector"]["spec"]
    # Without `from` or `to`: nodes' addresses cannot be named everywhere.
    assert policy["ingress"] == [{"ports": [{"protocol": "TCP", "port": 8443}]}]
    assert all(set(rule) == {"ports"} for rule in policy["egress"])
    deny = objects()["NetworkPolicy", "vedette-default-deny"]["spec"]
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


# --- configuration and restarts


def test_only_what_is_read_once_changes_the_config_hash(objects: Render) -> None:
    def annotation(data: Any = None, tls: TlsMaterial | None = TLS) -> Any:
        template = objects(data, tls)["StatefulSet", "vedette-detector"]["spec"]["template"]
        return template["metadata"]["annotations"]["vedette.dev/config-hash"]

    assert annotation({"cluster": {"name": "other"}}) != annotation()
    assert annotation({"detector": {"retention": {"events": "1d"}}}) != annotation()
    # Certificates are read again while the detector runs, rules and threat lists too.
    assert annotation(tls=TlsMaterial("a\n", "b\n", "c\n")) == annotation()
    assert annotation({"detector": {"rules": [{"configMap": "x"}]}}) == annotation()


def test_a_changed_secret_that_is_read_once_restarts_the_detector() -> None:
    def template(observed: dict[str, str]) -> Any:
        found = {m.template: m.content for m in render(parse({}), TLS, observed=observed)}
        return found["detector-statefulset"]["spec"]["template"]

    assert template({"Secret/database": "a"}) != template({"Secret/database": "b"})
    assert template({"Secret/database": "a"}) == template({"Secret/database": "a"})


def test_who_manages_the_pods_is_not_part_of_them(objects: Render) -> None:
    one, other = objects({"managedBy": "one"}), objects({"managedBy": "other"})
    for kind, name in (("DaemonSet", "vedette-agent"), ("StatefulSet", "vedette-detector")):
        assert one[kind, name]["spec"] == other[kind, name]["spec"]
        assert one[kind, name] != other[kind, name]


def test_what_cannot_be_changed_later_holds_nothing_that_changes(objects: Render) -> None:
    plain, special = objects(), objects(CASES["everything"][0])
    for kind, name in (("DaemonSet", "vedette-agent"), ("StatefulSet", "vedette-detector")):
        assert plain[kind, name]["spec"]["selector"] == special[kind, name]["spec"]["selector"]
    (claim,) = plain["StatefulSet", "vedette-detector"]["spec"]["volumeClaimTemplates"]
    (other,) = special["StatefulSet", "vedette-detector"]["spec"]["volumeClaimTemplates"]
    assert claim["metadata"] == other["metadata"]


def test_objects_come_in_the_order_in_which_to_apply_them() -> None:
    kinds = [m.kind for m in rendered()]
    assert kinds[0] == "Namespace"
    assert kinds[-2:] == ["StatefulSet", "DaemonSet"]
    assert [m.template for m in rendered()] == list(ORDER)


def test_agents_of_an_external_detector_have_no_detector_beside_them(objects: Render) -> None:
    found = objects(CASES["external-detector"][0])
    assert [kind for kind, name in found if "detector" in name] == []
    arguments = found["DaemonSet", "vedette-agent"]["spec"]["template"]["spec"]["containers"][0]["args"]
    assert "--endpoint=https://detector.example.com:8443" in arguments


# --- templates


def templates() -> list[str]:
    return [f"{name}.yaml.j2" for name in ORDER]


def test_every_template_is_rendered_and_every_rendered_one_exists() -> None:
    from importlib import resources

    folder = resources.files("vedette_operator") / "templates"
    assert sorted(entry.name for entry in folder.iterdir()) == sorted(templates())


@pytest.mark.parametrize("name", templates())
def test_every_value_in_a_template_goes_through_tojson(name: str) -> None:
    env = environment()
    assert env.loader is not None
    source, _, _ = env.loader.get_source(env, name)
    outputs = [child for output in env.parse(source).find_all(nodes.Output) for child in output.nodes]
    bare = [child for child in outputs if not isinstance(child, nodes.TemplateData)]
    assert bare or name == "networkpolicy-default.yaml.j2" or "{{" in source
    assert [c for c in bare if not (isinstance(c, nodes.Filter) and c.name == "tojson")] == []


@pytest.mark.parametrize(
    "source", ["{{ missing | tojson }}", "{{ a.missing | tojson }}", "{% if missing %}{% endif %}"]
)
def test_a_missing_value_is_an_error(source: str) -> None:
    with pytest.raises(jinja2.UndefinedError, match="missing"):
        environment().from_string(source).render(a={})


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"kind": ""}, Problem("kind", "is missing")),
        ({"metadata": {"name": "a", "namespace": "other"}}, Problem("metadata.namespace", "is 'other', not 'ns'")),
        (
            {"metadata": {"name": "A", "namespace": "ns"}},
            Problem("metadata.name", "'A' is not a name of lower-case letters, digits, '-' and '.'"),
        ),
        (
            {"metadata": {"name": "a", "namespace": "ns", "labels": {"a": "x" * 64}}},
            Problem("metadata.labels.a", "has 64 characters, at most 63 are allowed"),
        ),
        (
            {"metadata": {"name": "a", "namespace": "ns", "annotations": {"a": 1}}},
            Problem("metadata.annotations.a", "is not text"),
        ),
        ({"data": {"a b": ""}}, Problem("data", "'a b' is not a key")),
        ({"data": {"a": "x" * (1 << 20) + "x"}}, Problem("data", "has 1048577 bytes, at most 1048576 are allowed")),
        ({"kind": "Namespace"}, Problem("metadata.namespace", "a Namespace has none")),
    ],
)
def test_what_the_api_server_would_refuse_is_found_before(change: dict[str, Any], problem: Problem) -> None:
    good = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "namespace": "ns"}}
    assert problems_of(good, "ns") == []
    assert problems_of({**good, **change}, "ns") == [problem]


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        (
            ("spec", "selector", "matchLabels"),
            {"x": "y"},
            "spec.selector.matchLabels.x: the pods do not have this label",
        ),
        (
            ("spec", "template", "spec", "volumes", 0, "name"),
            "other",
            "containers[agent].volumeMounts: there is no volume token",
        ),
        (("spec", "template", "spec", "containers"), [], "spec.template.spec.containers: is missing"),
        (
            ("spec", "template", "spec", "containers", 0, "resources", "limits", "memory"),
            "1Gib",
            "containers[agent].resources.limits.memory: '1Gib' is not a quantity such as 250m, 64Mi or 2",
        ),
        (
            ("metadata", "name"),
            "a" * 53,
            "metadata.name: is too long for a DaemonSet, whose name becomes part of a label",
        ),
    ],
)
def test_what_does_not_fit_together_in_a_workload_is_found(
    objects: Render, path: tuple[Any, ...], value: Any, problem: str
) -> None:
    content = objects()["DaemonSet", "vedette-agent"]
    assert problems_of(content, "vedette-system") == []
    target = content
    for part in path[:-1]:
        target = target[part]
    target[path[-1]] = value
    assert any(str(found).endswith(problem) for found in problems_of(content, "vedette-system"))


def test_a_template_that_makes_two_objects_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = environment().from_string("a: 1\n---\nb: 2\n")
    monkeypatch.setattr("vedette_operator.rendering._template", lambda name: broken)
    with pytest.raises(ManifestError, match="namespace: must make one object, made 2 documents"):
        render(parse({}))


# --- injection


def check_scalar(text: str) -> None:
    """A value that takes any text, in an annotation (flow map) and as a redaction pattern (ConfigMap)."""
    manifests = rendered({"annotations": {"example.com/note": text}})
    assert [m.kind for m in manifests] == [m.kind for m in rendered()]
    for manifest in manifests:
        annotations = manifest.content["metadata"]["annotations"]
        assert annotations["example.com/note"] == text
        assert set(annotations) <= {"example.com/note", "vedette.dev/config-hash"}
    written = to_yaml(m.content for m in manifests)
    assert list(yaml.safe_load_all(written)) == [m.content for m in manifests]
    assert written.isascii()
    assert not any(ord(c) < 32 and c != "\n" for c in written)


@pytest.mark.parametrize("text", NASTY)
def test_a_nasty_value_stays_one_value(text: str) -> None:
    check_scalar(text)


@settings(deadline=None, max_examples=25)  # each renders a whole installation, twice
@given(TEXT)
def test_any_text_stays_one_value(text: str) -> None:
    check_scalar(text)


@settings(deadline=None)
@given(
    st.recursive(
        TEXT | st.integers() | st.booleans() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner)
    )
)
def test_plain_data_survives_a_template(data: Any) -> None:
    text = environment().from_string("before: 1\nvalue: {{ value | tojson }}\nafter: 2\n").render(value=data)
    assert yaml.safe_load(text) == {"before": 1, "value": data, "after": 2}
    assert text.count("\n") == 3


@pytest.mark.parametrize("text", NASTY)
def test_text_is_written_so_that_no_reader_takes_it_for_something_else(text: str) -> None:
    # YAML 1.2 and YAML 1.1 readers differ on y, 1e3, 0o17 and more: only quoted or plainly wordlike text is the same.
    line = to_yaml([{"a": text}]).removeprefix("---\na: ")
    assert line.startswith(('"', "|"))
    assert yaml.safe_load(f"a: {line}") == {"a": text}


def test_what_is_no_plain_data_cannot_be_written() -> None:
    with pytest.raises(TypeError):
        quoted(object())
    with pytest.raises(ValueError, match="JSON compliant"):
        quoted(float("nan"))
