"""Evaluation of trained networks under threats: attempts, rows, their store, worst cases and certificates."""
