"""Checks whether a part of the stack is ready by a request to it. It does not wait and changes nothing.

http://host:port/path                  answers with a success
temporal://host:port/namespace/queue   a worker polls this task queue; with ?build_id=…, one of this version
"""

from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, urlsplit

import httpx2
from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest
from temporalio.client import Client
from temporalio.service import RPCError

from engine.errors import SettingsInvalid

_ANSWER_TIMEOUT = timedelta(seconds=3)
_POLL_WINDOW = timedelta(minutes=2)


async def is_ready(url: str, *, polled_since: datetime | None = None) -> bool:
    """Return whether the part at `url` is ready. A worker that polled only before `polled_since` does not count.

    Raises SettingsInvalid for a URL of another scheme.
    """
    match urlsplit(url).scheme:
        case "http" | "https":
            return await _is_answering(url)
        case "temporal":
            return await _is_polled(url, polled_since or datetime.now(UTC) - _POLL_WINDOW)
        case _:
            raise SettingsInvalid(
                f"{url} cannot be asked: write http://host:port/path or temporal://host:port/namespace/queue"
            )


async def _is_answering(url: str) -> bool:
    try:
        async with httpx2.AsyncClient(
            timeout=_ANSWER_TIMEOUT.total_seconds(), trust_env=False
        ) as http_client:
            return (await http_client.get(url)).is_success
    except httpx2.TransportError:
        return False


async def _is_polled(url: str, polled_since: datetime) -> bool:
    url_parts = urlsplit(url)
    namespace, _, task_queue = url_parts.path.strip("/").partition("/")
    build_ids = parse_qs(url_parts.query).get("build_id", [])
    try:
        temporal_client = await Client.connect(url_parts.netloc, namespace=namespace)
        for queue_type in (TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW, TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY):
            describe_request = DescribeTaskQueueRequest(
                namespace=namespace, task_queue=TaskQueue(name=task_queue), task_queue_type=queue_type
            )
            queue_description = await temporal_client.workflow_service.describe_task_queue(
                describe_request, timeout=_ANSWER_TIMEOUT
            )
            if any(
                poller.last_access_time.ToDatetime(tzinfo=UTC) >= polled_since
                and (not build_ids or poller.deployment_options.build_id in build_ids)
                for poller in queue_description.pollers
            ):
                return True
    except (RPCError, RuntimeError):
        return False
    return False
