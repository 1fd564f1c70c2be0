"""Training: the LightningModule, the fit of a run, and callbacks around the estimator."""
