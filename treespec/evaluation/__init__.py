"""Run a growmap beside its baseline and report the measurements."""
