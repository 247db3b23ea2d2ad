"""Members of answers that matter where a document is too long for all of it to be kept.

`reduced_json.py` decides by their names alone, wherever in a document they stand: it reads answers
of every API and every provider.
"""

# Base64 and signatures: their beginning tells what they are, and the rest is no text.
DATA = frozenset(
    b"data url b64_json result file_data image_url encrypted_content signature thought_signature"
    b" partial_image_b64".split()
)
VECTORS = frozenset(
    b"logprobs top_logprobs embedding token_logprobs prompt_logprobs token_ids prompt_token_ids"
    b" text_offset".split()
)
FACTS = frozenset(
    b"usage finish_reason error status incomplete_details id type content text tool_calls"
    b" function_call reasoning_content reasoning reasoning_text reasoning_details thinking"
    b" thinking_blocks refusal images audio transcript base_resp index object message detail code"
    b" name arguments call_id summary".split()
)
# Containers that facts stand in, whatever else does.
PATHS = frozenset(b"choices delta message output response data".split())
# Containers of texts and calls: what is left out of them leaves a gap in the answer.
TEXTS = frozenset(
    b"choices content parts output images tool_calls summary reasoning_details"
    b" thinking_blocks".split()
)
