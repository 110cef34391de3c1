"""Make robustbench.csv from RobustBench's own list, which is not part of this project.

    git clone https://github.com/RobustBench/robustbench
    python results/paper/from_robustbench.py robustbench

One row per network for CIFAR-10 under Linf attacks: accuracies as fractions. `robust_accuracy` is
that under AutoAttack, or under a stronger attack where the list names one. `more_images` says
whether it saw other images than CIFAR-10's 50,000, real or generated. Left out are ensembles,
compressed networks, those that an attack breaks below 30 %, and architectures without a known size.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd

# Counted with RobustBench's own classes; ResNet-20's in He et al. (2016).
PARAMETERS = {
    "ResNet-20": 272_474,
    "WideResNet-28-4": 5_849_050,
    "PreActResNet-18": 11_171_146,
    "ResNet-18": 11_173_962,
    "ResNet-50": 23_520_842,
    "WideResNet-40-8": 35_748_314,
    "WideResNet-28-10": 36_479_194,
    "WideResNet-34-10": 46_160_474,
    "WideResNet-82-8": 79_125_466,
    "WideResNet-34-15": 103_819_674,
    "WideResNet-34-20": 184_531_674,
    "WideResNet-70-16": 266_796_506,
    "WideResNet-94-16": 365_915_610,
    "WideResNet-106-16": 415_475_162,
}

clone = Path(sys.argv[1])
version = ["git", "-C", clone, "rev-parse", "HEAD"]
commit = subprocess.run(version, capture_output=True, text=True, check=True).stdout.strip()
rows = []
for path in sorted((clone / "model_info/cifar10/Linf").glob("*.json")):
    known = json.loads(path.read_text(encoding="utf-8"))
    note = known.get("footnote") or ""
    accuracy = min(float(known["autoattack_acc"]), float(known.get("external") or 100))
    if known["architecture"] not in PARAMETERS or accuracy < 30:
        continue
    if known.get("unreliable") is True or re.search("ensemble|compressed", note, re.IGNORECASE):
        continue
    row = {"model": path.stem, "architecture": known["architecture"]}
    row |= {"parameters": PARAMETERS[known["architecture"]]}
    row |= {"more_images": bool(known.get("additional_data")) or "synthetic" in note}
    row |= {"clean_accuracy": round(float(known["clean_acc"]) / 100, 4)}
    row |= {"robust_accuracy": round(accuracy / 100, 4), "eps": known["eps"]}
    place = f"https://github.com/RobustBench/robustbench/blob/{commit}"
    rows.append(row | {"source": f"{place}/model_info/cifar10/Linf/{path.name}"})
pd.DataFrame(rows).to_csv(Path(__file__).parent / "robustbench.csv", index=False)
