"""SensorLLM (arXiv 2410.10624) from scratch: sensor channels -> Chronos T5 encoder -> projector -> LLaMA.

To read it, in this order; each file imports only from files before it:
config, trend_text, sensors, recordings, download, prepare: numbers and texts;
chronos_tokenizer, picture, triton_attention (may wait), layers, t5_encoder, llama, int8, weights, text_tokenizer, hub,
generate: the two networks;
data, sensorllm: the model;
text_scores, metrics, trend_scores, checkpoint, export, evaluation, report, ask, controls, options, training: what trains it,
scores it and doubts it.
"""
