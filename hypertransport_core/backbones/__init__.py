"""Frozen text-to-image networks as the core sees them: the protocol, and the adapter to ComfyUI."""
