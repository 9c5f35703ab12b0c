"""Exit statuses, and the exit status of each error code."""

from mlxk.domain.errors import MlxkError

DONE = 0
FAILED = 1
USAGE = 2
PORT_IN_USE = 3
INTERRUPTED = 130
CLOSED_PIPE = 141
"""What a shell reports for a process that SIGPIPE ended, which scripts ignore."""

EXIT_STATUS: dict[str, int] = {
    "usage_error": USAGE,
    "validation_error": FAILED,
    "model_not_found": FAILED,
    "ambiguous_match": FAILED,
    "hash_not_found": FAILED,
    "storage_error": FAILED,
    "model_unhealthy": FAILED,
    "incompatible_model": FAILED,
    "untrusted_model_code": FAILED,
    "backend_not_installed": FAILED,
    "capability_not_supported": FAILED,
    "context_length_exceeded": FAILED,
    "insufficient_memory": FAILED,
    "queue_full": FAILED,
    "feature_disabled": FAILED,
    "access_denied": FAILED,
    "network_error": FAILED,
    "download_failed": FAILED,
    "upload_failed": FAILED,
    "requires_confirmation": FAILED,
    "locks_present": FAILED,
    "workspace_model": FAILED,
    "secrets_found": FAILED,
    "conversion_failed": FAILED,
    "execution_error": FAILED,
    "interrupted": INTERRUPTED,
    "parameter_not_supported": FAILED,
    "not_found": FAILED,
    "method_not_allowed": FAILED,
    "unsupported_media_type": FAILED,
    "payload_too_large": FAILED,
    "request_timeout": FAILED,
    "unauthorized": FAILED,
    "forbidden_origin": FAILED,
    "server_shutdown": FAILED,
    "rank_lost": FAILED,
    "port_in_use": PORT_IN_USE,
    "internal_error": FAILED,
}


def exit_status(error: MlxkError) -> int:
    """Return the exit status of an error."""
    return EXIT_STATUS[error.code]
