"""A study's trainings and evaluations on several processes of this machine, as torchrun does."""

import codecs
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import yaml

from advbook.studies.places import ROOT
from advbook.studies.schema import Study
from advbook.studies.views import called
from advlib import distributed


def to_launch(study: Study) -> bool:
    """Whether the study wants several processes and this one works alone."""
    return (study.devices or 1) > 1 and not torch.distributed.is_initialized()


def launch(study: Study, *arguments: str, module: str = "advbook") -> None:
    """Run a module on ``study.devices`` processes, as torchrun does; what they print appears here.

    The module gets these arguments and ``--study FILE``, the study as it is here; its main function
    is wrapped in `torch.distributed.elastic.multiprocessing.errors.record`. Raises RuntimeError
    with the message of the process that failed first, and ValueError if this machine has fewer GPUs
    than that.
    """
    distributed.check_devices(study.devices)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={study.devices}", "-m", module]
    with tempfile.TemporaryDirectory() as folder:
        file, error = Path(folder) / "study.yaml", Path(folder) / "error.json"
        file.write_text(yaml.safe_dump(study.to_dict(), allow_unicode=True), encoding="utf-8")
        paths = [str(ROOT), str(ROOT / "book"), *filter(None, [os.environ.get("PYTHONPATH")])]
        env = os.environ | {"TORCHELASTIC_ERROR_FILE": str(error)}
        env |= {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
        # Together as many threads as this process has alone.
        env["OMP_NUM_THREADS"] = str(max(1, torch.get_num_threads() // study.devices))
        process = subprocess.Popen(
            [*command, *arguments, "--study", str(file)],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        text = codecs.getincrementaldecoder("utf-8")("replace")
        try:
            while said := process.stdout.read1():  # at once, and a bar's "\r" as it is
                print(text.decode(said), end="", flush=True)
            failed = process.wait()
        finally:
            process.terminate()  # torchrun ends its processes; after a regular end, nothing
            process.wait()
            process.stdout.close()
        if failed:
            said = (
                f"it left no message (torchrun ended with {failed}): it may have been killed, "
                "often for lack of memory; what it printed is above"
            )
            if error.is_file():
                said = json.loads(error.read_text())["message"]
                said = said["message"] if isinstance(said, dict) else said
                said = said.replace(str(file), called(study))  # that file is gone by then
            raise RuntimeError(f"one of {study.devices} processes failed and all ended: {said}")
