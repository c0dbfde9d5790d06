// Receive webhooks: npm install standardwebhooks; WEBHOOK_SECRET=whsec_... node receiver.mjs 8000.
import { createServer } from "node:http";
import { Webhook } from "standardwebhooks";

const webhook = new Webhook(process.env.WEBHOOK_SECRET);
const seen = new Set();

createServer(async (request, response) => {
  const body = Buffer.concat(await request.toArray()).toString();
  try {
    const event = webhook.verify(body, request.headers);
    if (!seen.has(request.headers["webhook-id"])) { // the same event may come twice
      seen.add(request.headers["webhook-id"]);
      console.log(event.type, event.data.run_id, event.data.status);
    }
    response.writeHead(204).end();
  } catch {
    response.writeHead(400).end();
  }
}).listen(Number(process.argv[2]), "127.0.0.1");
