"""The page of values is what the model says, and its example works."""

import dataclasses
import re

from vedette_operator.parsing import load_yaml
from vedette_operator.reference import PAGE, page
from vedette_operator.values import Values, parse


def test_the_page_is_fresh() -> None:
    assert page() == PAGE.read_text("utf-8")


def test_the_example_works() -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", page(), re.DOTALL)
    values = parse(load_yaml(example, "example"))
    assert values != Values()
    assert values.detector.storage.size == "50Gi"


def test_every_field_has_a_row_and_a_description() -> None:
    def leaves(kind: type) -> int:
        return sum(1 for field in dataclasses.fields(kind) if field.metadata["doc"].endswith("."))

    rows = [line for line in page().splitlines() if line.startswith("| `")]
    assert len(rows) == len(set(rows))
    assert leaves(Values) == len(dataclasses.fields(Values))
    for name in ("`agent.tolerations`", "`detector.external.url`", "`images.agent.digest`", "`configMap`", "`labels`"):
        assert any(row.startswith(f"| {name} |") for row in rows), name
