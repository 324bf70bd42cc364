"""What `siren inspect` shows of the plans beside a bundle."""

from collections.abc import Mapping
from pathlib import Path

from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from siren_runtime.backends.tensorrt.plan import Plan, PlanRecord, is_stale
from siren_runtime.bundle.reader import Bundle
from siren_runtime.errors import BackendError

from .console import one_line


def plan_table(
    bundle: Bundle, plans: Mapping[Path, PlanRecord | BackendError], *, check: bool
) -> Table:
    """A line for each plan, by its path: what it was compiled for, and whether it still matches.

    Args:
        check: read each and compare its SHA-256.
    """
    table = Table("plan", "library", "for", "profiles", "size", "state", box=None)
    table.padding = (0, 2, 0, 0)
    for path, record in plans.items():
        if isinstance(record, BackendError):
            table.add_row(Text(one_line(path.name)), "", "", "", "", Text(one_line(str(record))))
            continue
        gpus = ", ".join(record.compute_capabilities)
        table.add_row(
            Text(one_line(path.name)),
            Text(one_line(f"{record.flavor} {record.library_version}")),
            Text(one_line(f"compute capability {gpus}" if gpus else "its default range of GPUs")),
            "\n".join(map(str, record.profiles)),
            decimal(record.size),
            Text(one_line(_plan_state(bundle, Plan(path, record), check=check))),
        )
    return table


def _plan_state(bundle: Bundle, plan: Plan, *, check: bool) -> str:
    if is_stale(plan.record, bundle):
        return f"stale: compiled from another {', '.join(plan.record.sources)}; siren build again"
    try:
        if check:
            plan.read()
            return "matches the bundle; the plan has its SHA-256"
        size = plan.path.stat().st_size
    except (BackendError, OSError) as error:
        return str(error)
    if size != plan.record.size:
        return f"{size} bytes, its record says {plan.record.size}; siren build again"
    return "matches the bundle"
