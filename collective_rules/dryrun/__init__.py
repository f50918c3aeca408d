"""Dry runs: a program of any number of ranks, in one process, with nothing sent and no memory used."""

from collective_rules.dryrun.fake_values import UnknownValueError
from collective_rules.dryrun.run import StepsDone, dry_run
from collective_rules.dryrun.script import Result, run_script

__all__ = ["Result", "StepsDone", "UnknownValueError", "dry_run", "run_script"]
