"""Frozen text-to-image networks as the core sees them: the protocol, and the adapters to ComfyUI (comfyui, host_backbone)."""
