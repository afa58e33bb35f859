"""Every schema that rankfold writes to disk: the leaf that all folders import and that imports none of them.

Each record carries `"format": 1` and a line of history. Units are in the names. What was not measured is
`None`, never 0. Unknown keys are refused, so that a misspelt one cannot pass for a default.

base.py      what a record is, and the way to and from disk
training.py  recipe.toml, metrics.jsonl, train.json
sweeps.py    sweep.json
results.py   comparisons, rows of docs/results
plans.py     plan.json, parity.json, frontier.json
scores.py    evaluation.json
boards.py    cards and what a board turns out to be
bench.py     bench.json, and bench.json.part while it is measured
explanations.py  explanation.json
counts.py    cost.json
packages.py  manifest.json of a package
"""

from __future__ import annotations

from .base import CostKind, Finish, FormName, Measure, Part, Positive, Record, Sha256, Solver, first_problem
from .bench import (
    Agreement,
    Begun,
    Bench,
    Block,
    Caution,
    Change,
    Changes,
    Comparison,
    Context,
    Done,
    Launch,
    Moment,
    OperatorTable,
    OperatorTime,
    Paced,
    Pair,
    Pilot,
    Sustained,
    Variant,
)
from .boards import Card, CpuFacts, Facts, Fleet, Weather
from .counts import Cost, LayerCount, ModelCount
from .explanations import Bar, Explained, Explanation, Improvement, Matched, Seconds
from .packages import Package, PackagedFile, PackagedTensor
from .plans import (
    Compressed,
    Damage,
    Drop,
    Frontier,
    FrontierPoint,
    GroupDecision,
    LayerDecision,
    LayerTable,
    LayerTime,
    Parity,
    ParityCheck,
    Plan,
    PlanTiming,
    RuleCurve,
    RulePoint,
    Tuned,
)
from .results import (
    AblationRow,
    ChoosingRow,
    Claim,
    ComparisonSpec,
    EvidenceRow,
    Made,
    OneShotRow,
    PlannedRow,
    ResultRow,
    StabilityRow,
    TrainedRow,
    TuningRow,
    VariantSpec,
)
from .scores import Evaluation, ModelScore, Score
from .sweeps import Setting, Sweep, SweepPoint
from .training import (
    DataSpec,
    DistillSpec,
    EpochRow,
    Event,
    LayerSummary,
    ModelSpec,
    OptimizerSpec,
    PlannedStart,
    Promise,
    Recipe,
    RegularizerSpec,
    TargetReached,
    TrainRecord,
)

__all__ = [
    "AblationRow",
    "Agreement",
    "Bar",
    "Begun",
    "Bench",
    "Block",
    "Card",
    "Caution",
    "Change",
    "Changes",
    "ChoosingRow",
    "Claim",
    "Comparison",
    "ComparisonSpec",
    "Compressed",
    "Context",
    "Cost",
    "CostKind",
    "CpuFacts",
    "Damage",
    "DataSpec",
    "DistillSpec",
    "Done",
    "Drop",
    "EpochRow",
    "Evaluation",
    "Event",
    "EvidenceRow",
    "Explained",
    "Explanation",
    "Facts",
    "Finish",
    "Fleet",
    "FormName",
    "Frontier",
    "FrontierPoint",
    "GroupDecision",
    "Improvement",
    "Launch",
    "LayerCount",
    "LayerDecision",
    "LayerSummary",
    "LayerTable",
    "LayerTime",
    "Made",
    "Matched",
    "Measure",
    "ModelCount",
    "ModelScore",
    "ModelSpec",
    "Moment",
    "OneShotRow",
    "OperatorTable",
    "OperatorTime",
    "OptimizerSpec",
    "Paced",
    "Package",
    "PackagedFile",
    "PackagedTensor",
    "Pair",
    "Parity",
    "ParityCheck",
    "Part",
    "Pilot",
    "Plan",
    "PlanTiming",
    "PlannedRow",
    "PlannedStart",
    "Positive",
    "Promise",
    "Recipe",
    "Record",
    "RegularizerSpec",
    "ResultRow",
    "RuleCurve",
    "RulePoint",
    "Score",
    "Seconds",
    "Setting",
    "Sha256",
    "Solver",
    "StabilityRow",
    "Sustained",
    "Sweep",
    "SweepPoint",
    "TargetReached",
    "TrainRecord",
    "TrainedRow",
    "Tuned",
    "TuningRow",
    "Variant",
    "VariantSpec",
    "Weather",
    "first_problem",
]
