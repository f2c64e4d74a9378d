"""Values: every mistake at once, each with the path of its field; what is given is laid over the defaults."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vedette_operator.errors import ValuesError
from vedette_operator.parsing import assign, load_yaml, plain
from vedette_operator.values import Values, parse


def problems(data: Any) -> list[str]:
    with pytest.raises(ValuesError) as raised:
        parse(data)
    return [str(problem) for problem in raised.value.problems]


def nested(path: str, value: Any) -> Any:
    for name in reversed(path.split(".")):
        value = {name: value}
    return value


def test_nothing_given_is_a_whole_installation() -> None:
    values = parse(None)
    assert values == parse({}) == Values()
    assert values.endpoint == "https://vedette-detector.vedette-system.svc:8443"
    assert values.images.reference(values.images.agent) == "localhost/vedette-agent:dev"
    assert [(t.key, t.operator) for t in values.agent.tolerations] == [("", "Exists")]


def test_plain_data_and_values_are_the_same() -> None:
    values = parse({"cluster": {"name": "x"}, "detector": {"rules": [{"configMap": "a"}], "storage": {"size": "20Gi"}}})
    assert parse(plain(values)) == values


def test_what_is_given_is_laid_over_the_default() -> None:
    values = parse({"images": {"agent": {"tag": "1"}}, "agent": {"resources": {"limits": {"memory": "1Gi"}}}})
    assert values.images.reference(values.images.agent) == "localhost/vedette-agent:1"
    assert values.agent.resources.requests == {"cpu": "50m", "memory": "96Mi"}
    assert values.agent.resources.limits == {"memory": "1Gi"}
    # A map or list as a whole takes the default's place: else nothing could be taken out of one.
    assert parse({"agent": {"affinity": {}, "tolerations": []}}).agent.affinity == {}


def test_every_mistake_is_reported_at_once() -> None:
    assert problems(
        {
            "agnet": {},
            "namespace": "Vedette",
            "cluster": {"accountId": 12345678901},
            "agent": {"tolerations": [{"operator": "Exist"}, 1], "resources": {"limits": {"memory": "1GB"}}},
        }
    ) == [
        "agnet: there is no such field; did you mean agent?",
        "namespace: 'Vedette' is not a name of lower-case letters, digits and '-'",
        "cluster.accountId: expected text, got a number: put it in quotes",
        "agent.tolerations[0].operator: 'Exist' is not one of Exists, Equal",
        "agent.tolerations[1]: expected fields, got a number",
        "agent.resources.limits.memory: '1GB' is not a quantity such as 250m, 64Mi or 2",
    ]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("namespace", "a" * 64, "has 64 characters, at most 63 are allowed"),
        ("namespace", "", "'' is not a name of lower-case letters, digits and '-'"),
        ("createNamespace", "yes", "expected true or false, got text"),
        (
            "managedBy",
            "a b",
            "'a b' is not a label value: letters, digits, '-', '_', '.', beginning and ending with letter or digit",
        ),
        ("labels", ["a"], "expected a map, got a list"),
        ("labels", {"a": True}, None),
        (
            "labels",
            {"app.kubernetes.io/name": "x"},
            "'app.kubernetes.io/name': keys beginning with app.kubernetes.io/ are set by Vedette",
        ),
        ("annotations", {"vedette.dev/x": "x"}, "'vedette.dev/x': keys beginning with vedette.dev/ are set by Vedette"),
        (
            "annotations",
            {"-a": "x"},
            "'-a' is not a key: letters, digits, '-', '_' and '.', beginning and ending with letter or digit",
        ),
        ("annotations", {"a_b/c": "x"}, "'a_b/c': what is before '/' is not a DNS name"),
        ("cluster.name", "a\nb", "'a\\nb' is not a cluster's name"),
        ("cluster.arn", "arn:x", "'arn:x' is not an ARN"),
        ("cluster.accountId", "12", "'12' is not twelve digits"),
        ("cluster.partition", "azure", "'azure' is not one of aws, aws-cn, aws-us-gov"),
        (
            "images.registry",
            "https://x",
            "'https://x' is not a registry, with or without a path, such as registry.example.com/security",
        ),
        ("images.tag", "a b", "'a b' is not an image tag"),
        ("images.tag", 1.1, "expected text, got a number: put it in quotes"),
        ("images.agent.digest", "sha256:abc", "'sha256:abc' is not a digest such as sha256:<64 hex digits>"),
        ("images.agent.repository", "", "'' is not the name of an image"),
        ("agent.spoolLimit", "1Ki", "'1Ki' is less than 1Mi"),
        ("agent.hostPath", "/a/../b", "'/a/../b' is not an absolute path of plain names"),
        ("agent.hostPath", "var/lib", "'var/lib' is not an absolute path of plain names"),
        ("agent.hashMibPerSecond", -1, "must be at least 0, is -1"),
        ("agent.hashMibPerSecond", 1 << 40, f"{1 << 40} is out of range"),
        ("agent.hashMibPerSecond", True, "expected a whole number, got true or false"),
        ("agent.maxUnavailable", "0", "'0' is neither a number of nodes nor a percentage such as 10%"),
        ("agent.maxUnavailable", "101%", "'101%' is neither a number of nodes nor a percentage such as 10%"),
        ("agent.annotations", {"a": "x\0"}, None),
        ("detector.retention.events", "7 days", "'7 days' is not a duration such as 90d, 12h or 30m"),
        ("detector.retention.events", "0d", "must be longer than nothing"),
        ("detector.external", {}, None),
        ("detector.external.url", "http://a:1", "'http://a:1' is not of the form https://host:port"),
        ("detector.external.url", "https://a", "'https://a' is not of the form https://host:port"),
        ("detector.external.url", "https://a:1/x", "'https://a:1/x' is not of the form https://host:port"),
        ("detector.external.url", "https://a:b", "'https://a:b' is not of the form https://host:port"),
        ("detector.external.url", "https://u@a:1", "'https://u@a:1' is not of the form https://host:port"),
        ("detector.redaction.patterns", ["a\nb"], None),
        ("detector.adminServiceAccounts", ["reader"], None),
        ("detector.storeUrl", {"secret": "a"}, None),
        ("networkPolicies.sources", ["10.0.0.1/24"], None),
        ("networkPolicies.egressPorts", [0], None),
        ("networkPolicies.egressPorts", "443", "expected a list, got text"),
    ],
)
def test_a_bad_value_is_named(path: str, value: Any, message: str | None) -> None:
    (problem,) = problems(nested(path, value))
    assert problem.startswith(path)
    if message is not None:
        assert problem == f"{path}: {message}"


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (
            {"agent": {"resources": {"requests": {"memory": "1Gi"}}}},
            "agent.resources.requests.memory: is more than the limit of 256Mi",
        ),
        (
            {"agent": {"tolerations": [{"effect": "NoSchedule"}]}},
            "agent.tolerations[0]: without a key the operator must be Exists",
        ),
        (
            {"agent": {"tolerations": [{"key": "a", "operator": "Exists", "value": "b"}]}},
            "agent.tolerations[0].value: must be empty with the operator Exists",
        ),
        (
            {"detector": {"tolerations": [{"key": "a", "tolerationSeconds": 1}]}},
            "detector.tolerations[0].tolerationSeconds: needs the effect NoExecute",
        ),
        (
            {"agent": {"affinity": {"nodeAfinity": {}}}},
            "agent.affinity.nodeAfinity: is not one of nodeAffinity, podAffinity, podAntiAffinity",
        ),
        (
            {"agent": {"affinity": {"nodeAffinity": {"a": 1.5}}}},
            "agent.affinity.nodeAffinity.a: expected plain data, got a number",
        ),
        ({"detector": {"rules": [{}]}}, "detector.rules[0]: needs either configMap or secret"),
        (
            {"detector": {"threatLists": [{"configMap": "a", "secret": "a"}]}},
            "detector.threatLists[0]: needs either configMap or secret",
        ),
        ({"detector": {"rules": [{"secret": "a"}, {"secret": "a"}]}}, "detector.rules[1]: is there twice"),
        (
            {"detector": {"storage": {"size": "4Gi"}}},
            "detector.retention.eventsSize: is more than 80 % of the volume of 4Gi",
        ),
    ],
)
def test_values_that_do_not_fit_together_are_named(data: Any, problem: str) -> None:
    assert problems(data) == [problem]


@pytest.mark.parametrize(
    ("assignment", "data"),
    [
        ("cluster.accountId=000123456789", {"cluster": {"accountId": "000123456789"}}),
        ("cluster.name=a=b", {"cluster": {"name": "a=b"}}),
        ("createNamespace=false", {"createNamespace": False}),
        ("agent.hashMibPerSecond=0", {"agent": {"hashMibPerSecond": 0}}),
        ("agent.logLevel=debug", {"agent": {"logLevel": "debug"}}),
        ("agent.tolerations=[]", {"agent": {"tolerations": []}}),
        ("agent.nodeSelector.example.com/pool=on", {"agent": {"nodeSelector": {"example.com/pool": "on"}}}),
        ("agent.resources.limits.cpu=2", {"agent": {"resources": {"limits": {"cpu": "2"}}}}),
        ("agent.affinity.nodeAffinity={a: [1]}", {"agent": {"affinity": {"nodeAffinity": {"a": [1]}}}}),
        ("detector.external.url=https://a:1", {"detector": {"external": {"url": "https://a:1"}}}),
        ("detector.external=null", {"detector": {"external": None}}),
        ("detector.storage.className=", {"detector": {"storage": {"className": ""}}}),
        ("networkPolicies.egressPorts=[443]", {"networkPolicies": {"egressPorts": [443]}}),
    ],
)
def test_an_assignment_is_read_as_its_field_wants(assignment: str, data: Any) -> None:
    target: dict[str, Any] = {}
    assign(Values, target, assignment)
    assert target == data


def test_an_assignment_wins_over_what_is_there() -> None:
    data = {"agent": {"nodeSelector": {"a": "1"}, "logLevel": "info"}}
    assign(Values, data, "agent.nodeSelector.b=2")
    assign(Values, data, "agent.logLevel=error")
    assert data == {"agent": {"nodeSelector": {"a": "1", "b": "2"}, "logLevel": "error"}}


@pytest.mark.parametrize(
    ("assignment", "problem"),
    [
        ("agent", "agent: is not of the form path=value"),
        ("agent.colour=red", None),
        ("agent.logLevel.x=1", "agent.logLevel.x: logLevel has no fields"),
        ("agent.tolerations=[", None),
        ("labels.a=b", "labels.a: labels is text in the values file"),
    ],
)
def test_a_bad_assignment_is_named(assignment: str, problem: str | None) -> None:
    with pytest.raises(ValuesError) as raised:
        assign(Values, {"labels": "x"}, assignment)
    if problem is not None:
        assert str(raised.value) == problem
    else:
        assert str(raised.value).startswith(assignment.partition("=")[0])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\na: 2\n", "values.yaml:2: is not valid YAML: 'a' is there twice"),
        ("a: [\n", "values.yaml:2: is not valid YAML: "),
        ("a: 1\n---\nb: 2\n", "values.yaml:2: is not valid YAML: "),
        ("a: !!python/object/apply:os.getcwd []\n", "values.yaml:1: is not valid YAML: "),
        ("? [a]\n: 1\n", "values.yaml:1: is not valid YAML: a key must be plain text"),
        ("[" * 1000, "values.yaml: is nested too deeply"),
    ],
)
def test_a_values_file_that_is_no_yaml_is_named_with_its_line(text: str, problem: str) -> None:
    with pytest.raises(ValuesError) as raised:
        load_yaml(text, "values.yaml")
    assert str(raised.value).startswith(problem)


DATA = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from([*plain(Values()), *plain(Values().agent), *plain(Values().detector), "x"]),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@settings(deadline=None)
@given(DATA)
def test_whatever_is_given_ends_in_values_or_in_problems(data: Any) -> None:
    try:
        values = parse(data)
    except ValuesError as error:
        found = error.problems
    else:
        found = ()
        assert parse(plain(values)) == values
    assert all(problem.message for problem in found)
