"""Actions on a Stripe account through its REST API; amounts are in the currency's smallest unit."""

from pydantic import BaseModel

from byline import action, upstream


class Invoice(BaseModel):
    """An invoice, and the charges that succeeded for it."""

    id: str
    number: str
    currency: str
    amount_due: int
    charged: int
    charges: list[str]

    @property
    def overpaid_amount(self) -> int:
        """The amount that was charged beyond the amount due."""
        return max(0, self.charged - self.amount_due)


@action("stripe.list_invoices", connection="billing", reads_only=True)
async def list_invoices(customer_id: str) -> list[Invoice]:
    """List a customer's invoices, each with its succeeded charges."""
    billing_api = upstream()
    customer_filter = {"customer": customer_id, "limit": "100"}
    record_name = f"customer/{customer_id}"
    invoice_records = (
        await billing_api.get("/v1/invoices", params=customer_filter, record=record_name)
    ).json()["data"]
    charge_records = (
        await billing_api.get("/v1/charges", params=customer_filter, record=record_name)
    ).json()["data"]
    return [_build_invoice(invoice_record, charge_records) for invoice_record in invoice_records]


def _build_invoice(invoice_record: dict[str, object], charge_records: list[dict[str, object]]) -> Invoice:
    successful_charges = [
        charge_record
        for charge_record in charge_records
        if charge_record["invoice"] == invoice_record["id"] and charge_record["status"] == "succeeded"
    ]
    return Invoice.model_validate(
        {
            **{
                field_name: invoice_record[field_name]
                for field_name in ("id", "number", "currency", "amount_due")
            },
            "charged": sum(int(str(charge_record["amount"])) for charge_record in successful_charges),
            "charges": [charge_record["id"] for charge_record in successful_charges],
        }
    )
