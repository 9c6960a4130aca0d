"""Envoy's configuration, as values. The listener is fixed at start; everything else changes by files.

Facts about Envoy that this rests on are pinned as tests in tests/with_envoy.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pilotage.gateway.table import GatewayLimits, ServiceEntry

Json = dict[str, Any]

TYPE = "type.googleapis.com/envoy"
HTTP_FILTERS = f"{TYPE}.extensions.filters.http"
AUTHZ = "envoy.filters.http.ext_authz"
USAGE = "pilotage.usage"

# What the picker answers with, beside the verdict. They become metadata of the request and never reach an engine.
ENDPOINTS, LEASE, PATCH, ANSWER, ANSWER_STATUS, ANSWER_RETRY = (
    "x-gateway-destination-endpoint",
    "x-pilotage-lease",
    "x-pilotage-patch",
    "x-pilotage-answer",
    "x-pilotage-answer-status",
    "x-pilotage-answer-retry-after",
)
# The header that chooses the route; removed before the engine.
SERVICE = "x-pilotage-service"
# What a client is told of its key's limits, with every answer.
RATE_LIMIT = "x-ratelimit-"
# When the request came, stamped before the picker is asked, so that it outlives a restart of the picker.
ARRIVAL = "x-pilotage-arrival"

# Usage as engines report it: OpenAI's object, or llama.cpp's running timings.
USAGE_FIELDS = {
    "prompt_tokens": ("usage", "prompt_tokens"),
    "completion_tokens": ("usage", "completion_tokens"),
    "cached_tokens": ("usage", "prompt_tokens_details", "cached_tokens"),
    "timings_cached": ("timings", "cache_n"),
    "timings_prompt": ("timings", "prompt_n"),
    "timings_predicted": ("timings", "predicted_n"),
}

# Envoy's own limits queue or refuse where the picker can't see it, so they are raised out of the way.
NO_LIMIT = 1_000_000
CIRCUIT_BREAKERS: Json = {
    "thresholds": [
        {
            "priority": "DEFAULT",
            "max_connections": NO_LIMIT,
            "max_pending_requests": NO_LIMIT,
            "max_requests": NO_LIMIT,
            "max_retries": NO_LIMIT,
        }
    ]
}
LONGEST_HOLD_S = 3_600
STALLED_BODY_S = 60.0
LARGEST_EVENT_BYTES = 1024 * 1024
PICKER_RETRIES = 8

# Runs after ext_authz: answers what the picker answered itself (ext_authz can't answer 200 or 5xx), and appends fields
# to a JSON body. The last of equal keys wins in every engine's parser, so appended fields override the client's.
LUA = f"""
function envoy_on_request(handle)
  local said = handle:streamInfo():dynamicMetadata():get("{AUTHZ}")
  if said == nil then return end
  local answer = said["{ANSWER}"]
  if answer ~= nil then
    local headers = {{[":status"] = said["{ANSWER_STATUS}"], ["content-type"] = "application/json"}}
    if said["{ANSWER_RETRY}"] ~= nil then headers["retry-after"] = said["{ANSWER_RETRY}"] end
    handle:respond(headers, answer)
    return
  end
  local patch = said["{PATCH}"]
  if patch == nil then return end
  local body = handle:body()
  if body == nil then return end
  local text = body:getBytes(0, body:length())
  local head = string.match(text, "^(.*)}}%s*$")
  if head == nil then return end
  local joint = ","
  if string.match(head, "^%s*{{%s*$") then joint = "" end
  local size = body:setBytes(head .. joint .. patch .. "}}")
  handle:headers():replace("content-length", tostring(size))
end
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvoySettings:
    """What is fixed for the life of one Envoy process."""

    address: str
    port: int
    xds: Path
    picker_socket: Path
    admin_socket: Path
    access_log: Path
    limits: GatewayLimits
    periodic_log_s: float = 1.0


def bootstrap(settings: EnvoySettings) -> Json:
    """Envoy's bootstrap: the listener, the picker's cluster, and where the rest is read from."""
    return {
        "node": {"id": "pilotage-gateway", "cluster": "pilotage"},
        "admin": {"address": {"pipe": {"path": str(settings.admin_socket), "mode": 0o600}}},
        "dynamic_resources": {"cds_config": _files(settings.xds, "clusters.json")},
        "static_resources": {"listeners": [_listener(settings)], "clusters": [_picker_cluster(settings)]},
    }


def routes(services: Sequence[ServiceEntry]) -> Json:
    """The route configuration (RDS): one route a service, chosen by the picker's header."""
    return {
        "@type": f"{TYPE}.config.route.v3.RouteConfiguration",
        "name": "services",
        "virtual_hosts": [
            {
                "name": "all",
                "domains": ["*"],
                "request_headers_to_remove": [SERVICE, ARRIVAL, "x-envoy-external-address"],
                "routes": [*(_route(service) for service in services), _unrouted(services)],
            }
        ],
    }


def _unrouted(services: Sequence[ServiceEntry]) -> Json:
    """Where every request is before the picker has spoken; nothing is ever sent from here.

    The idle timeout must end no hold, and ends a client that stops in the middle of its body.
    """
    longest_hold_s = max((service.max_wait_s for service in services), default=0.0)
    return {
        "match": {"prefix": "/"},
        "route": {
            "cluster": "nowhere",
            "timeout": "0s",
            "idle_timeout": f"{longest_hold_s + STALLED_BODY_S}s",
            "cluster_not_found_response_code": "NOT_FOUND",
        },
    }


def clusters(services: Iterable[ServiceEntry], *, xds: Path) -> list[Json]:
    """The clusters (CDS): one a service, its endpoints in a file of its own."""
    return [_cluster(service, xds) for service in services]


def endpoints(service: ServiceEntry) -> Json:
    """The endpoints (EDS) of one service: draining ones too, since their streams still run."""
    return {
        "@type": f"{TYPE}.config.endpoint.v3.ClusterLoadAssignment",
        "cluster_name": service.cluster,
        "endpoints": [
            {"lb_endpoints": [{"endpoint": {"address": _socket(replica.endpoint)}} for replica in service.replicas]}
        ],
    }


def endpoints_file(service: ServiceEntry) -> str:
    """Name of the file that holds `endpoints(service)`."""
    return f"endpoints-{service.key.replace('/', '.')}.json"


def _files(folder: Path, name: str) -> Json:
    return {
        "path_config_source": {"path": str(folder / name), "watched_directory": {"path": str(folder)}},
        "resource_api_version": "V3",
    }


def _socket(endpoint: str) -> Json:
    address, _, port = endpoint.rpartition(":")
    return {"socket_address": {"address": address.strip("[]"), "port_value": int(port)}}


def _listener(settings: EnvoySettings) -> Json:
    return {
        "name": "clients",
        "address": {"socket_address": {"address": settings.address, "port_value": settings.port}},
        # Whole answers may be large; the limit is what one slow client can pin in memory.
        "per_connection_buffer_limit_bytes": 1024 * 1024,
        "filter_chains": [
            {
                "filters": [
                    {
                        "name": "envoy.filters.network.http_connection_manager",
                        "typed_config": _connection_manager(settings),
                    }
                ]
            }
        ],
    }


def _connection_manager(settings: EnvoySettings) -> Json:
    return {
        "@type": f"{TYPE}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "clients",
        "codec_type": "AUTO",
        "use_remote_address": True,
        "skip_xff_append": True,
        "preserve_external_request_id": True,
        "always_set_request_id_in_response": True,
        "normalize_path": True,
        "merge_slashes": True,
        "path_with_escaped_slashes_action": "REJECT_REQUEST",
        "common_http_protocol_options": {"headers_with_underscores_action": "REJECT_REQUEST", "idle_timeout": "3600s"},
        # These would end holds and long answers; routes have idle timeouts instead.
        "request_timeout": "0s",
        "request_headers_timeout": "10s",
        "stream_idle_timeout": "0s",
        "delayed_close_timeout": "5s",
        "early_header_mutation_extensions": [_no_smuggled_headers()],
        "local_reply_config": LOCAL_REPLIES,
        "access_log": [_access_log(settings)],
        "access_log_options": {"access_log_flush_interval": f"{settings.periodic_log_s}s"},
        "rds": {"route_config_name": "services", "config_source": _files(settings.xds, "routes.json")},
        "http_filters": [
            _usage_of_streams(),
            _usage_of_answers(),
            _ask_the_picker(settings),
            {
                "name": "envoy.filters.http.lua",
                "typed_config": {
                    "@type": f"{HTTP_FILTERS}.lua.v3.Lua",
                    "default_source_code": {"inline_string": LUA},
                },
            },
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{HTTP_FILTERS}.router.v3.Router", "suppress_envoy_headers": True},
            },
        ],
    }


def _no_smuggled_headers() -> Json:
    """A client chooses no endpoint, tenant, arrival, retry or timeout."""
    prefixes = ["x-pilotage-", "x-envoy-", "x-gateway-"]
    return {
        "name": "envoy.http.early_header_mutation.header_mutation",
        "typed_config": {
            "@type": f"{TYPE}.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
            "mutations": [
                *({"remove_on_match": {"key_matcher": {"prefix": prefix}}} for prefix in prefixes),
                {
                    "append": {
                        "header": {"key": ARRIVAL, "value": "%START_TIME(%s.%6f)%"},
                        "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
                    }
                },
            ],
        },
    }


def _ask_the_picker(settings: EnvoySettings) -> Json:
    return {
        "name": AUTHZ,
        "typed_config": {
            "@type": f"{HTTP_FILTERS}.ext_authz.v3.ExtAuthz",
            "transport_api_version": "V3",
            "status_on_error": {"code": "ServiceUnavailable"},
            "clear_route_cache": True,
            "with_request_body": {"max_request_bytes": settings.limits.max_body_bytes, "allow_partial_message": False},
            "allowed_headers": {"patterns": [{"exact": h} for h in ("traceparent", ARRIVAL)]},
            "http_service": {
                "server_uri": {"uri": "http://picker", "cluster": "picker", "timeout": f"{LONGEST_HOLD_S + 60}s"},
                "path_prefix": "/check",
                "authorization_response": {
                    "allowed_upstream_headers": {
                        "patterns": [{"exact": h} for h in (SERVICE, "authorization", "traceparent")]
                    },
                    "allowed_client_headers": {
                        "patterns": [
                            *({"exact": h} for h in ("content-type", "www-authenticate", "retry-after")),
                            {"prefix": RATE_LIMIT},
                        ]
                    },
                    "allowed_client_headers_on_success": {"patterns": [{"prefix": RATE_LIMIT}]},
                    "dynamic_metadata_from_headers": {
                        "patterns": [
                            {"exact": h} for h in (ENDPOINTS, LEASE, PATCH, ANSWER, ANSWER_STATUS, ANSWER_RETRY)
                        ]
                    },
                },
                # A picker that restarts is asked again: all of 300 held requests were served so, none without.
                # `max_interval` caps the backoff; the try itself is bounded by the timeout above.
                "retry_policy": {
                    "retry_on": "connect-failure,reset,refused-stream",
                    "num_retries": PICKER_RETRIES,
                    "retry_back_off": {"base_interval": "0.1s", "max_interval": f"{LONGEST_HOLD_S}s"},
                },
            },
        },
    }


def _picker_cluster(settings: EnvoySettings) -> Json:
    return {
        "name": "picker",
        "type": "STATIC",
        "connect_timeout": "5s",
        "circuit_breakers": CIRCUIT_BREAKERS,
        "load_assignment": {
            "cluster_name": "picker",
            "endpoints": [
                {"lb_endpoints": [{"endpoint": {"address": {"pipe": {"path": str(settings.picker_socket)}}}}]}
            ],
        },
    }


def _route(service: ServiceEntry) -> Json:
    return {
        "name": service.key,
        "match": {"prefix": "/", "headers": [{"name": SERVICE, "string_match": {"exact": service.key}}]},
        "route": {
            "cluster": service.cluster,
            "timeout": "0s",
            "idle_timeout": f"{service.first_byte_timeout_s}s",
            "retry_policy": {
                # Before response headers a request may be sent once more; after them it never is.
                "retry_on": "connect-failure,reset,refused-stream",
                "num_retries": 1,
                "retry_back_off": {"base_interval": "0.01s", "max_interval": "0.05s"},
            },
        },
        "response_headers_to_add": [TRACE],
        "response_headers_to_remove": ["server", "keep-alive"],
    }


def _cluster(service: ServiceEntry, xds: Path) -> Json:
    return {
        "@type": f"{TYPE}.config.cluster.v3.Cluster",
        "name": service.cluster,
        "type": "EDS",
        "connect_timeout": "2s",
        "circuit_breakers": CIRCUIT_BREAKERS,
        "eds_cluster_config": {"service_name": service.cluster, "eds_config": _files(xds, endpoints_file(service))},
        "load_balancing_policy": {"policies": [_only_what_was_picked()]},
        "typed_extension_protocol_options": {
            f"{TYPE.split('/')[1]}.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": f"{TYPE}.extensions.upstreams.http.v3.HttpProtocolOptions",
                # Shorter than the engine's own, so that a request never meets a connection being closed.
                "common_http_protocol_options": {"idle_timeout": f"{service.keepalive_s}s"},
                "explicit_http_config": {"http_protocol_options": {}},
            }
        },
    }


def _only_what_was_picked() -> Json:
    """The picked endpoints in order, and none else: Envoy's usual fallback would send a stale pick past every limit."""
    # A subset that no endpoint is in, without a fallback, is how Envoy says "none".
    nothing = _balancing(
        "subset",
        "Subset",
        fallback_policy="NO_FALLBACK",
        subset_selectors=[{"keys": ["never"], "fallback_policy": "NO_FALLBACK"}],
        subset_lb_policy={"policies": [_balancing("random", "Random")]},
    )
    return _balancing(
        "override_host",
        "OverrideHost",
        override_host_sources=[{"metadata": {"key": AUTHZ, "path": [{"key": ENDPOINTS}]}}],
        fallback_policy={"policies": [nothing]},
    )


def _balancing(name: str, message: str, **settings: Any) -> Json:
    return {
        "typed_extension_config": {
            "name": f"envoy.load_balancing_policies.{name}",
            "typed_config": {"@type": f"{TYPE}.extensions.load_balancing_policies.{name}.v3.{message}", **settings},
        }
    }


def _usage_rules() -> list[Json]:
    return [
        {
            "selectors": [{"key": step} for step in path],
            "on_present": {"metadata_namespace": USAGE, "key": name, "type": "NUMBER"},
        }
        for name, path in USAGE_FIELDS.items()
    ]


def _usage_of_streams() -> Json:
    return {
        "name": "envoy.filters.http.sse_to_metadata",
        "typed_config": {
            "@type": f"{HTTP_FILTERS}.sse_to_metadata.v3.SseToMetadata",
            "response_rules": {
                "max_event_size": LARGEST_EVENT_BYTES,
                "content_parser": {
                    "name": "envoy.content_parsers.json",
                    "typed_config": {
                        "@type": f"{TYPE}.extensions.content_parsers.json.v3.JsonContentParser",
                        "rules": [{"rule": rule} for rule in _usage_rules()],
                    },
                },
            },
        },
    }


def _usage_of_answers() -> Json:
    return {
        "name": "envoy.filters.http.json_to_metadata",
        "typed_config": {
            "@type": f"{HTTP_FILTERS}.json_to_metadata.v3.JsonToMetadata",
            "response_rules": {
                "allow_content_types_regex": {"regex": "application/json.*"},
                "rules": _usage_rules(),
            },
        },
    }


def _access_log(settings: EnvoySettings) -> Json:
    fields = {
        "type": "%ACCESS_LOG_TYPE%",
        "lease": f"%DYNAMIC_METADATA({AUTHZ}:{LEASE})%",
        "request_id": "%REQ(x-request-id)%",
        "traceparent": "%REQ(traceparent)%",
        "code": "%RESPONSE_CODE%",
        "details": "%RESPONSE_CODE_DETAILS%",
        "flags": "%RESPONSE_FLAGS%",
        "host": "%UPSTREAM_HOST%",
        "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
        "start_s": "%START_TIME(%s.%3f)%",
        "duration_ms": "%DURATION%",
        "first_body_ms": "%COMMON_DURATION(DS_RX_BEG:US_RX_BODY_BEG:ms)%",
        "usage": f"%DYNAMIC_METADATA({USAGE})%",
    }
    return {
        "name": "envoy.access_loggers.file",
        "typed_config": {
            "@type": f"{TYPE}.extensions.access_loggers.file.v3.FileAccessLog",
            "path": str(settings.access_log),
            "log_format": {"json_format": fields, "omit_empty_values": True},
        },
    }


PICKER_ANSWERED = "response.code_details in ['ext_authz_denied', 'lua_response']"
TRACE: Json = {
    "header": {"key": "traceparent", "value": "%REQ(traceparent)%"},
    "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
}


def _where(condition: str) -> Json:
    return {
        "extension_filter": {
            "name": "envoy.access_loggers.extension_filters.cel",
            "typed_config": {
                "@type": f"{TYPE}.extensions.access_loggers.filters.cel.v3.ExpressionFilter",
                "expression": condition,
            },
        }
    }


def _local_reply(condition: str, *, kind: str, code: str, message: str) -> Json:
    """Envoy's own answer where `condition` (CEL) holds, in OpenAI's shape."""
    return {
        "filter": _where(condition),
        "headers_to_add": [TRACE],
        "body_format_override": {
            "json_format": {"error": {"message": message, "type": kind, "code": code}},
            "content_type": "application/json",
        },
    }


LOCAL_REPLIES: Json = {
    "mappers": [
        {"filter": _where(PICKER_ANSWERED), "headers_to_add": [TRACE]},
        _local_reply(
            "response.code == 413",
            kind="invalid_request_error",
            code="request_too_large",
            message="The request body is larger than this gateway accepts.",
        ),
        _local_reply(
            "response.code_details == 'ext_authz_error'",
            kind="service_unavailable_error",
            code="gateway_restarting",
            message="The gateway could not reach its picker. Try again in a moment.",
        ),
        _local_reply(
            "response.code == 503",
            kind="service_unavailable_error",
            code="engine_unavailable",
            message="The engine that was to answer went away before it began (%RESPONSE_CODE_DETAILS%). Try again.",
        ),
        _local_reply(
            "response.code == 504 || response.code == 408",
            kind="timeout_error",
            code="timeout",
            message="Nothing came in time (%RESPONSE_CODE_DETAILS%).",
        ),
        _local_reply(
            "response.code >= 400",
            kind="invalid_request_error",
            code="bad_request",
            message="The request could not be understood (%RESPONSE_CODE_DETAILS%).",
        ),
    ]
}
