"""SensorLLM (arXiv 2410.10624) from scratch: sensor channels -> Chronos T5 -> projector -> LLaMA.

Start with sensorllm.py; README.md beside this file says what to read next.
"""
