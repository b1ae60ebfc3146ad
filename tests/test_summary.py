"""What a run ends with can be read."""

from types import SimpleNamespace

import pytest

from pipeline.load.stage import LoadReport
from pipeline.summary import PLANNED, describe_held, describe_window, rate, seconds, size
from pipeline.write.plan import Estimate
from pipeline.write.tokenizer import load_tokenizer


def report(input_ids, target_ids):
    return LoadReport(
        batches=1,
        windows=1,
        tokens=len(input_ids),
        seconds=1.0,
        first_batch_seconds=0.5,
        load_seconds=0.2,
        shapes={},
        weight=[],
        shuffle="none",
        window_id=3,
        input_ids=input_ids,
        target_ids=target_ids,
    )


def test_a_window_is_shown_with_each_input_beside_its_target():
    text = describe_window(report([40, 367, 2885], [367, 2885, 1464]), load_tokenizer(name="gpt2"))
    lines = [line.split() for line in text.splitlines()]
    assert lines[2:5] == [
        ["0", "'I'", "40", "'", "H'", "367"],
        ["1", "'", "H'", "367", "'AD'", "2885"],
        ["2", "'AD'", "2885", "'", "always'", "1464"],
    ]
    assert "target  ' HAD always'" in text


def test_a_part_of_a_character_is_shown_as_its_bytes_and_an_ignored_target_as_such():
    text = describe_window(report([104, 195], [195, -100]), load_tokenizer(name="bytes"))
    assert r"'\xc3' 195" in text
    assert "-100 (ignored)" in text


def test_figures_come_in_units_people_use():
    assert size(20_479) == "20.5 kB"
    assert size(3) == "3 B"
    assert rate(1286, 0.5, "windows") == "2.57 k windows/s"
    assert rate(2e9, 1, "B") == "2 GB/s"
    assert seconds(0.01234) == "0.0123 s"
    assert seconds(1234) == "1,234 s"


@pytest.mark.parametrize(("came", "verdict"), [(0.6, "outside the margin"), (1.2, "within the margin")])
def test_a_plans_seconds_have_their_own_margin_and_no_other(came, verdict):
    planned = dict.fromkeys(PLANNED, Estimate(value=5.0, margin=0.0)) | {"seconds": Estimate(value=1.5, margin=0.75)}
    plan = SimpleNamespace(**planned)
    manifest = SimpleNamespace(splits={}, corpus={"documents": 6})
    report = SimpleNamespace(
        manifest=manifest, peak_memory=5, start_seconds=0.0, tokenize_seconds=0.0, write_seconds=came
    )
    lines = describe_held(plan, report).splitlines()
    (line,) = [line for line in lines if " seconds " in line or "time" in line]
    assert line.endswith(verdict)
    (line,) = [line for line in lines if "documents" in line]
    assert line.endswith("within the margin"), "one document may be cut in two"
