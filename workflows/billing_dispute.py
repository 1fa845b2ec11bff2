"""A composite tool that examines a billing dispute in CRM, billing and support, and answers its ticket."""

import asyncio
from datetime import timedelta

from byline import tool
from pydantic import BaseModel, Field
from temporalio import workflow

# Without this, each run would import these modules again. None of their code runs in a workflow.
with workflow.unsafe.imports_passed_through():
    from activities.salesforce import Account, read_account
    from activities.stripe import Invoice, list_invoices
    from activities.zendesk import Ticket, TicketUpdate, read_ticket, update_ticket

# The limits of one attempt and of all attempts of a step together. Waiting for a person counts in neither.
_ATTEMPT_TIMEOUT = timedelta(seconds=60)
_STEP_TIMEOUT = timedelta(minutes=10)


class BillingDispute(BaseModel):
    """What the dispute is about."""

    account_id: str = Field(
        description="The account's id in the CRM.", min_length=15, max_length=18, pattern="^[A-Za-z0-9]+$"
    )
    customer_id: str = Field(description="The customer's id in billing.", pattern="^cus_[A-Za-z0-9]+$")
    ticket_id: int = Field(description="The number of the support ticket that complains.", ge=1)


class Evidence(BaseModel):
    """The records of the three systems about the dispute."""

    account: Account
    invoices: list[Invoice]
    ticket: Ticket


class Resolution(BaseModel):
    """The result of the examination."""

    account: str
    ticket_id: int
    ticket_status: str
    overpaid_invoices: list[str]
    overpaid_amount: int = Field(description="In the currency's smallest unit.")
    currency: str | None
    summary: str


@tool(title="Resolve a billing dispute", destructive=False)
@workflow.defn(name="resolve_billing_dispute")
class ResolveBillingDisputeWorkflow:
    """Look into a customer's billing dispute and answer the support ticket.

    Reads the account in the CRM, compares its invoices with the charges taken for them in billing, and writes what
    it found into the support ticket. Everything happens in the name of the person who asks.
    """

    @workflow.run
    async def run(self, dispute: BillingDispute) -> Resolution:
        """Gather the evidence, then answer the ticket."""
        evidence = await workflow.execute_child_workflow(GatherEvidenceWorkflow.run, dispute)
        resolution = _build_resolution(evidence)
        ticket_update = TicketUpdate(
            ticket_id=dispute.ticket_id,
            status="pending" if resolution.overpaid_amount else "solved",
            comment=resolution.summary,
        )
        ticket = await workflow.execute_child_workflow(AnswerTicketWorkflow.run, ticket_update)
        return resolution.model_copy(update={"ticket_status": ticket.status})


@workflow.defn(name="gather_billing_evidence")
class GatherEvidenceWorkflow:
    """Reads the three systems in parallel."""

    @workflow.run
    async def run(self, dispute: BillingDispute) -> Evidence:
        """Read account, invoices and ticket in parallel."""
        account, invoices, ticket = await asyncio.gather(
            workflow.execute_child_workflow(LookUpAccountWorkflow.run, dispute.account_id),
            workflow.execute_child_workflow(CrossReferenceBillingWorkflow.run, dispute.customer_id),
            workflow.execute_activity(
                read_ticket,
                dispute.ticket_id,
                start_to_close_timeout=_ATTEMPT_TIMEOUT,
                schedule_to_close_timeout=_STEP_TIMEOUT,
            ),
        )
        if account.billing_customer_id != dispute.customer_id:
            raise ValueError(
                f"Customer {dispute.customer_id} is not the one that the CRM links to account {account.name}."
            )
        return Evidence(account=account, invoices=invoices, ticket=ticket)


@workflow.defn(name="look_up_account")
class LookUpAccountWorkflow:
    """Reads the CRM."""

    @workflow.run
    async def run(self, account_id: str) -> Account:
        """Read the account."""
        return await workflow.execute_activity(
            read_account,
            account_id,
            start_to_close_timeout=_ATTEMPT_TIMEOUT,
            schedule_to_close_timeout=_STEP_TIMEOUT,
        )


@workflow.defn(name="cross_reference_billing")
class CrossReferenceBillingWorkflow:
    """Compares what was charged with what was due."""

    @workflow.run
    async def run(self, customer_id: str) -> list[Invoice]:
        """Return the invoices that were paid more than once, or all where none was."""
        invoices = await workflow.execute_activity(
            list_invoices,
            customer_id,
            start_to_close_timeout=_ATTEMPT_TIMEOUT,
            schedule_to_close_timeout=_STEP_TIMEOUT,
        )
        return [invoice for invoice in invoices if invoice.overpaid_amount] or invoices


@workflow.defn(name="answer_ticket")
class AnswerTicketWorkflow:
    """Writes into support."""

    @workflow.run
    async def run(self, ticket_update: TicketUpdate) -> Ticket:
        """Update the ticket."""
        return await workflow.execute_activity(
            update_ticket,
            ticket_update,
            start_to_close_timeout=_ATTEMPT_TIMEOUT,
            schedule_to_close_timeout=_STEP_TIMEOUT,
        )


def _build_resolution(evidence: Evidence) -> Resolution:
    overpaid_invoices = [invoice for invoice in evidence.invoices if invoice.overpaid_amount]
    overpaid_amount = sum(invoice.overpaid_amount for invoice in overpaid_invoices)
    currency = overpaid_invoices[0].currency if overpaid_invoices else None
    if overpaid_invoices:
        invoice_numbers = ", ".join(invoice.number for invoice in overpaid_invoices)
        summary = (
            f"{evidence.account.name} was charged {overpaid_amount / 100:.2f} {currency} too much "
            f"on {invoice_numbers}: refund it."
        )
    else:
        summary = f"Nothing was charged twice to {evidence.account.name}."
    return Resolution(
        account=evidence.account.name,
        ticket_id=evidence.ticket.id,
        ticket_status=evidence.ticket.status,
        overpaid_invoices=[invoice.number for invoice in overpaid_invoices],
        overpaid_amount=overpaid_amount,
        currency=currency,
        summary=summary,
    )
