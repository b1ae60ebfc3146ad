"""What the write stage produced next to what the plan stage expected."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.shards.estimate import Estimate
    from pipeline.shards.plan import PlanReport
    from pipeline.shards.write import WriteReport


def compare_with_plan(plan: PlanReport, report: WriteReport) -> dict[str, dict[str, float]]:
    """Return for each quantity that a plan estimates: `planned`, its `margin`, and what was `found`.

    Without a margin the plan is exact, and both counts are the same unless the corpus was changed in between.
    """
    splits = report.manifest.splits.values()
    expected: dict[str, Estimate] = {name: getattr(plan, name) for name in ("documents", "tokens", "windows", "shards")}
    found: dict[str, float] = {
        "documents": report.manifest.corpus["documents"],
        "tokens": sum(split.num_tokens for split in splits),
        "windows": sum(split.num_windows for split in splits),
        "shards": sum(len(split.shards) for split in splits),
        "bytes": sum(split.num_bytes for split in splits),
    }
    expected["bytes"] = plan.bytes
    for what, planned, counted in (
        ("padding", plan.padding, report.padding),
        ("cut", plan.cut, report.manifest.windows.get("cut", {})),
    ):
        for split, estimate in planned.items():
            expected[f"{what}.{split}"], found[f"{what}.{split}"] = estimate, counted.get(split, 0)
    return {
        name: {"planned": estimate.value, "margin": estimate.margin, "found": found[name]}
        for name, estimate in expected.items()
    }
