"""The operator Attention of ONNX, by its reference and by ONNX Runtime."""
# mypy: disable-error-code="import-not-found"


def onnx_model(q, mask, causal, opset, softcap=None):
    import onnx

    kind = {"float32": "float", "float16": "float16", "float64": "double", "bool": "bool"}
    x = kind.get(q.dtype.name, q.dtype.name)
    inputs = [f"{x}[b{n}, h{n}, t{n}, d{n}] {n}" for n in "QKV"]
    names = "Q, K, V"
    if mask is not None:
        axes = ", ".join(f"m{i}" for i in range(mask.ndim))
        inputs.append(f"{kind.get(mask.dtype.name, mask.dtype.name)}[{axes}] M")
        names += ", M"
    settings = f"is_causal = {int(causal)}" + (f", softcap = {softcap}" if softcap else "")
    return onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : {opset}]> graph ({", ".join(inputs)}) => '
        f"({x}[b, h, t, d] Y) {{ Y = Attention <{settings}> ({names}) }}"
    )


def fed(q, k, v, mask):
    return {"Q": q, "K": k, "V": v} | ({} if mask is None else {"M": mask})


def onnx_reference(q, k, v, mask=None, causal=False, softcap=None):
    from onnx.reference import ReferenceEvaluator

    model = onnx_model(q, mask, causal, 25, softcap)
    (output,) = ReferenceEvaluator(model).run(None, fed(q, k, v, mask))
    return output


def onnxruntime(q, k, v, mask=None, causal=False, opset=25, softcap=None):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    model = onnx_model(q, mask, causal, opset, softcap).SerializeToString()
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return session.run(["Y"], fed(q, k, v, mask))[0]
