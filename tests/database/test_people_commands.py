from engine.identity.model import Principal
from engine.services import Services
from tests.support.commands import Commands


async def test_who_takes_anothers_name_or_subject_for_their_own_name_keeps_nobody_from_being_stopped(
    services: Services, alice: Principal, commands: Commands
) -> None:
    for name in (alice.name, alice.subject, alice.id):
        await services.principals.resolve_principal("https://elsewhere.example", f"mallory as {name}", name)

    for ambiguous in (alice.name, alice.subject):
        assert alice.id in await commands.read_refusal("people", "deactivate", ambiguous)
    await commands.read_output("people", "deactivate", alice.id)

    stopped_principal = await services.principals.find_principal(alice.id)
    assert stopped_principal is not None
    assert not stopped_principal.is_active
