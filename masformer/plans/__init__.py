"""Which layer sees how far, and what that costs.

`layer_spans` holds the patterns, `spans` the plan of a model, `text` its text form, `cost` its FLOPs and cache bytes.
"""
