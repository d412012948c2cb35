"""The engine behind the verbs: training into maps and running queries through pipelines."""

from reloc_core.engine.evaluating import Evaluation, evaluate
from reloc_core.engine.extending import extend
from reloc_core.engine.queries import Outcome, run_queries
from reloc_core.engine.training import train

__all__ = ["Evaluation", "Outcome", "evaluate", "extend", "run_queries", "train"]
