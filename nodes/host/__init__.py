"""Everything that touches the host: the only place that imports comfy."""
