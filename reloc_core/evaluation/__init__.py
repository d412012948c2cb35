"""Measuring a localizer: metrics, result files, the terminal summary and the report page."""

from reloc_core.evaluation.metrics import (
    THRESHOLDS,
    Metrics,
    RelativeMetrics,
    ReliabilityBin,
    nees,
    pose_errors,
    relative_metrics,
    summarize,
)
from reloc_core.evaluation.results import (
    QueryResult,
    query_result,
    read_localizations,
    result_content,
    summarize_results,
    write_localizations,
    write_poses,
    write_poses_tum,
    write_result_files,
)
from reloc_core.evaluation.table import summary_table

__all__ = [
    "THRESHOLDS",
    "Metrics",
    "QueryResult",
    "RelativeMetrics",
    "ReliabilityBin",
    "nees",
    "pose_errors",
    "query_result",
    "read_localizations",
    "relative_metrics",
    "result_content",
    "summarize",
    "summarize_results",
    "summary_table",
    "write_localizations",
    "write_poses",
    "write_poses_tum",
    "write_result_files",
]
