"""Execution: tasks, the evaluators that carry them out, and the executors that distribute them."""
