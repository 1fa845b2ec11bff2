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

_ANSWER_WITHIN = timedelta(seconds=3)
_POLLED_WITHIN = timedelta(minutes=2)


async def is_ready(url: str, *, since: datetime | None = None) -> bool:
    """Return whether the part at `url` is ready. A worker that polled only before `polled_since` does not count.

    Raises SettingsInvalid for a URL of another scheme.
    """
    match urlsplit(url).scheme:
        case "http" | "https":
            return await _answers(url)
        case "temporal":
            return await _is_polled(url, since or datetime.now(UTC) - _POLLED_WITHIN)
        case _:
            raise SettingsInvalid(
                f"{url} cannot be asked: write http://host:port/path or temporal://host:port/namespace/queue"
            )


async def _answers(url: str) -> bool:
    try:
        async with httpx2.AsyncClient(timeout=_ANSWER_WITHIN.total_seconds(), trust_env=False) as http:
            return (await http.get(url)).is_success
    except httpx2.TransportError:
        return False


async def _is_polled(url: str, since: datetime) -> bool:
    parts = urlsplit(url)
    namespace, _, queue = parts.path.strip("/").partition("/")
    builds = parse_qs(parts.query).get("build_id", [])
    try:
        client = await Client.connect(parts.netloc, namespace=namespace)
        for kind in (TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW, TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY):
            request = DescribeTaskQueueRequest(
                namespace=namespace, task_queue=TaskQueue(name=queue), task_queue_type=kind
            )
            answer = await client.workflow_service.describe_task_queue(request, timeout=_ANSWER_WITHIN)
            if any(
                poller.last_access_time.ToDatetime(tzinfo=UTC) >= since
                and (not builds or poller.deployment_options.build_id in builds)
                for poller in answer.pollers
            ):
                return True
    except (RPCError, RuntimeError):
        return False
    return False
