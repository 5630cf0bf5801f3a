"""What a user asks for: one verb a file, a frozen dataclass whose fields are the command's flags."""

from __future__ import annotations

from bitwright.lookup import Row

VERBS: dict[str, Row] = {
    "demo": Row("bitwright.verbs.demo:Demo", "train a small network on digits, quantize, verify, one table"),
    "inspect": Row("bitwright.verbs.inspect:Inspect", "ops, shapes, parameters, MACs, and what runs in integers"),
    "quantize": Row("bitwright.verbs.quantize:Quantize", "a float network in, a smaller integer network out"),
    "auto": Row("bitwright.verbs.auto:Auto", "climb the ladder of recipes until the accuracy goal holds"),
    "search": Row("bitwright.verbs.search:Search", "mixed widths: budgets in, a front of runnable networks out"),
    "sensitivity": Row("bitwright.verbs.sensitivity:Sensitivity", "what each width of each layer loses"),
    "debug": Row("bitwright.verbs.debug:Debug", "where the error comes from, and what each remedy buys"),
    "run": Row("bitwright.verbs.run:Run", "top-5 of images, by one file or two side by side"),
    "evaluate": Row("bitwright.verbs.evaluate:Evaluate", "accuracy of a file in its runtime"),
    "verify": Row("bitwright.verbs.verify:Verify", "prove that the runtime serves what is simulated, code by code"),
    "benchmark": Row("bitwright.verbs.benchmark:Benchmark", "latency of files side by side"),
    "plan show": Row("bitwright.verbs.plan:Show", "how each region and site is quantized, as a table"),
    "plan diff": Row("bitwright.verbs.plan:Diff", "what a plan says otherwise than another, site by site"),
    "plan edit": Row("bitwright.verbs.plan:Edit", "a plan with other widths, as a JSON file"),
    "methods": Row("bitwright.verbs.methods:Methods", "all that one can choose: steps, estimators, formats ..."),
    "recipes": Row("bitwright.verbs.listing:Recipes", "the recipes of quantize and their steps"),
    "targets": Row("bitwright.verbs.listing:Targets", "the targets and what they run in integers"),
}
