"""Step 5: find out how likely a model's predictions are wrong, and where."""

from ml_debugger.evaluator.evaluator import Evaluator

__all__ = ["Evaluator"]
