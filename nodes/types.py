"""Socket types and the category that the nodes share."""

from comfy_api.latest import io

CATEGORY = "quantflux"
QuantConfigSocket = io.Custom("QUANT_CONFIG")
