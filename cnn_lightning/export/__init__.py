"""A folder with a trained network for other programs: ONNX, safetensors and a card, verified before it is there."""
