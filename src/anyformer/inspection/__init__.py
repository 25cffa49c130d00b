"""Looking at a model: what passes through it (`trace`), the contract tried on it (`verify`), its loss on texts.

On what passes through it stand

    interventions   edit, ablate, skip, patch: change it while it runs
    patching        which activation of one prompt brings back its answer in another
    lens            what each layer would answer
    attribution     whose a logit is: shares of heads and layers
    heads           what heads attend to, in numbers
    probes          what a linear map reads off a layer
    looking         all of it for one text, and a page of pictures
"""

from anyformer.inspection.contract import Check, verify
from anyformer.inspection.evaluation import Evaluation, evaluate
from anyformer.inspection.tracing import Trace, sites, trace

__all__ = ["Check", "Evaluation", "Trace", "evaluate", "sites", "trace", "verify"]
