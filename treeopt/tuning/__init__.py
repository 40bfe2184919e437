"""Tuning: from models and a data set to the fastest tree and its report, in one process and one folder.

`run.py` is one run and `stages.py` has its stages; `folder.py` keeps what is finished, `plan.py` says beforehand what it will take, and
`budget.py` spends minutes.
"""
