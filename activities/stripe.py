"""Actions on a Stripe account through its REST API; amounts are in the currency's smallest unit."""

from pydantic import BaseModel

from engine.sdk import action, upstream


class Invoice(BaseModel):
    """An invoice, and the charges that succeeded for it."""

    id: str
    number: str
    currency: str
    amount_due: int
    charged: int
    charges: list[str]

    @property
    def overpaid(self) -> int:
        """The amount that was charged beyond the amount due."""
        return max(0, self.charged - self.amount_due)


@action("stripe.list_invoices", connection="billing", reads_only=True)
async def list_invoices(customer_id: str) -> list[Invoice]:
    """List a customer's invoices, each with its succeeded charges."""
    billing = upstream()
    of_customer = {"customer": customer_id, "limit": "100"}
    record = f"customer/{customer_id}"
    invoices = (await billing.get("/v1/invoices", params=of_customer, record=record)).json()["data"]
    charges = (await billing.get("/v1/charges", params=of_customer, record=record)).json()["data"]
    return [_invoice(found, charges) for found in invoices]


def _invoice(found: dict[str, object], charges: list[dict[str, object]]) -> Invoice:
    succeeded = [
        charge for charge in charges if charge["invoice"] == found["id"] and charge["status"] == "succeeded"
    ]
    return Invoice.model_validate(
        {
            **{name: found[name] for name in ("id", "number", "currency", "amount_due")},
            "charged": sum(int(str(charge["amount"])) for charge in succeeded),
            "charges": [charge["id"] for charge in succeeded],
        }
    )
