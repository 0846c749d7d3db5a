"""Model folders of other runtimes, onnxruntime-genai's and transformers.js's, made ours."""
