import json

import torch


def test_says_what_can_run_and_why_the_rest_cannot(unit_fast) -> None:
    found = json.loads(unit_fast("env", "--json").stdout)

    assert found["packages"]["torch"] == torch.__version__
    device = "cuda" if torch.cuda.is_available() else "cpu"
    assert found["backends"][f"eager on {device}"] == "yes"
    if not torch.cuda.is_available():
        assert found["devices"]["cuda"].startswith("none: ")
        assert found["backends"]["triton on cpu"].startswith("no: ")


def test_table_for_people(unit_fast) -> None:
    result = unit_fast("env")

    assert result.exit_code == 0
    for heading in ("platform", "packages", "devices", "backends", torch.__version__):
        assert heading in result.stdout
