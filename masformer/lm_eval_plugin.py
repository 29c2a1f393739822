"""The model that lm-evaluation-harness finds by the entry point `lm_eval.models`, from its version 0.4.14 on.

lm_eval --model masformer --model_args '{"pretrained": "my-checkpoint", "plan": "full@1,2 span=512"}' --tasks TASK
"""

from __future__ import annotations

from masformer.suite import suite_module

MasformerLM = suite_module("eval.interop.lm_eval_model").MasformerLM
