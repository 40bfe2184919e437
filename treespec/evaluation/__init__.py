"""Run a growmap beside its baseline and report what was seen."""
