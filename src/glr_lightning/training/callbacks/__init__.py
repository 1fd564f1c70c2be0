"""What surrounds the estimator while it trains."""
