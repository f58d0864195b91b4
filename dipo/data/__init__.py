"""Readers of calibration and evaluation samples."""
