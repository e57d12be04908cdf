"""vidalign aligns video language models with preferences they make themselves.

This package is the library beneath ``cluster``, ``actors``, ``pipelines`` and ``serving``: it starts no Ray cluster and
speaks no HTTP. ``vidalign.types``, ``vidalign.config.run`` and ``vidalign.data.reading`` import without torch.
"""

__version__ = "0.1.0"
