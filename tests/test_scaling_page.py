"""docs/scaling.md: its commands are understood, and its jobs for Slurm and Kubernetes run with two launchers that stand for two hosts."""

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.test_docs import blocks, understood

PAGE = "docs/scaling.md"
BLOCKS = [block.text for block in blocks(PAGE)]
TARGET = "embedded-target"
SMALL = "--draft embedded-draft --device cpu --prompt-len 8 --num-prompts 4 --gen-len 4 --batch-size 1"
WITHIN = 300
"""Seconds that a job may take on a slow and busy machine."""

pytestmark = pytest.mark.skipif(os.name == "nt", reason="shells and processes of Unix")


def manifests() -> list[dict[str, Any]]:
    """The objects of the Kubernetes example."""
    (text,) = [block for block in BLOCKS if block.startswith("apiVersion")]
    return list(yaml.safe_load_all(text))


def slurm() -> str:
    """The Slurm example."""
    (text,) = [block for block in BLOCKS if block.startswith("#!")]
    return text


def small(line: str) -> str:
    """A command line on the pair that comes along, with little to do, on one process per host that has no GPU."""
    return re.sub(r"(--nproc-per-node[ =])8", r"\g<1>1", line).replace("TARGET", TARGET).replace("--draft DRAFT", SMALL)


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **more}


@contextmanager
def held_port() -> Iterator[int]:
    """A port that the launchers may listen on, but that nobody else is given: as long as this socket is bound to it, the system does not hand it out."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def check(hosts: list[Path]) -> None:
    """The first host has the result, made by two processes, and nothing else is left."""
    found = json.loads((hosts[0] / "acceptance.json").read_text())
    assert (found["prompts"], found["provenance"]["processes"]) == (4, 2)
    left = [path.name for host in hosts for path in host.iterdir() if not path.name.endswith(".lock")]
    assert left == ["acceptance.json"]


def test_every_command_is_understood() -> None:
    lines = [re.search(r"-m treeopt (.*)", block.replace("\\\n", " ")) for block in BLOCKS if "-m treeopt" in block]
    every = [found for block in BLOCKS for found in re.findall(r"-m treeopt (.*)", block.replace("\\\n", " "))]
    assert all(lines)
    assert len(every) == 5
    for line in every:
        understood(shlex.split(line))


def test_the_slurm_job_runs_with_two_launchers(tmp_path: Path) -> None:
    """`srun` and `scontrol` are scripts here: the first starts the launcher once per host, in a folder of the host's own."""
    subprocess.run(["bash", "-n"], input=slurm(), text=True, check=True)
    hosts = [tmp_path / "host0", tmp_path / "host1"]
    tools = tmp_path / "tools"
    for folder in (*hosts, tools):
        folder.mkdir()
    scripts = {
        "scontrol": 'test "$1 $2 $3" = "show hostnames vm[0-1]" && printf "127.0.0.1\\nvm1\\n"',
        "srun": f'cd {hosts[0]}; "$@" & one=$!; cd {hosts[1]}; "$@" & wait $one && wait $!',
        "torchrun": f'exec {shlex.quote(sys.executable)} -m torch.distributed.run "$@"',
    }
    for name, text in scripts.items():
        (tools / name).write_text(f"#!/bin/bash\n{text}\n")
        (tools / name).chmod(0o755)
    given = {"SLURM_JOB_NODELIST": "vm[0-1]", "SLURM_NNODES": "2", "SLURM_JOB_ID": "7", "PATH": f"{tools}:{os.environ['PATH']}"}
    with held_port() as port:
        job = small(slurm()).replace(":29500", f":{port}")
        done = subprocess.run(["bash"], input=job, text=True, env=environment(**given), capture_output=True, timeout=WITHIN)
    assert done.returncode == 0, done.stderr
    check(hosts)


def test_the_kubernetes_job_runs_with_two_launchers(tmp_path: Path) -> None:
    service, job, policy = manifests()
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert (service["spec"]["clusterIP"], service["spec"]["selector"]) == ("None", {"job-name": job["metadata"]["name"]})
    assert policy["spec"]["podSelector"]["matchLabels"] == service["spec"]["selector"]
    assert pod["subdomain"] == service["metadata"]["name"]
    assert f"--master-addr={job['metadata']['name']}-0.{pod['subdomain']}" in container["args"]
    assert f"--nnodes={job['spec']['completions']}" in container["args"]
    assert job["spec"]["completions"] == job["spec"]["parallelism"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 8
    assert container["command"] == ["torchrun"]
    words = container["args"]
    understood(words[words.index("treeopt") + 1 :])
    with held_port() as port, ExitStack() as opened:
        started = []
        for index in range(2):
            host = tmp_path / f"host{index}"
            host.mkdir()
            put_in = {
                "$(JOB_COMPLETION_INDEX)": str(index),
                "treeopt-0.treeopt": "127.0.0.1",
                "29500": str(port),
                "--draft=DRAFT": "--draft DRAFT",
            }
            line = shlex.join(words)
            for old, new in put_in.items():
                line = line.replace(shlex.quote(f"--node-rank={old}") if "$" in old else old, f"--node-rank={new}" if "$" in old else new)
            command = [sys.executable, "-m", "torch.distributed.run", *shlex.split(small(line))]
            said = opened.enter_context((tmp_path / f"said{index}").open("w"))
            started.append(opened.enter_context(subprocess.Popen(command, cwd=host, env=environment(), stdout=said, stderr=said)))
            opened.callback(started[-1].kill)
        until = time.monotonic() + WITHIN
        while any(process.poll() is None for process in started) and time.monotonic() < until:
            time.sleep(0.1)
        ended = [process.poll() for process in started]
    assert ended == [0, 0], "\n".join((tmp_path / f"said{index}").read_text() for index in range(2))
    check([tmp_path / "host0", tmp_path / "host1"])
