"""SensorLLM (arXiv 2410.10624) from scratch: sensor channels -> Chronos T5 encoder -> projector -> LLaMA.

To read it, in this order; each file imports only from files before it:
config, sensors, trend_text, recordings, prepare: numbers and texts;
chronos_tokenizer, triton_attention (may wait), layers, t5_encoder, llama, int8, weights, text_tokenizer, hub, generate:
the two networks;
data, sensorllm, metrics, checkpoint, export, evaluation, options, training: the model, and what trains and scores it.
"""
