"""A work dir as one page of HTML. Reads files alone: needs no OpenMMLab, and executes nothing that it reads."""
from .page import render
from .run import Run, read

__all__ = ['Run', 'read', 'render']
