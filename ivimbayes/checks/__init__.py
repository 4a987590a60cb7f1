"""Checks of model and prior: prior predictive check, prior sensitivity, simulation-based calibration."""
