// Say something to a PicoClaw host and show the answer while it comes: node chat.mjs "what did I say?"
const url = process.env.PICOCLAW_URL ?? "http://localhost:9000";
const always = { Authorization: `Bearer ${process.env.API_TOKEN}`, "Content-Type": "application/json" };

// Yields the events of a stream: id, name, data.
async function* events(path, headers, body) {
  const answer = await fetch(url + path, { method: body ? "POST" : "GET", headers: { ...always, ...headers }, body });
  if (!answer.ok) throw Object.assign(new Error(await answer.text()), { status: answer.status });
  let text = "";
  for await (const piece of answer.body.pipeThrough(new TextDecoderStream())) {
    const frames = (text + piece).split("\n\n");
    text = frames.pop();
    for (const frame of frames) {
      const event = Object.fromEntries(frame.split("\n").map((line) => line.split(/: (.*)/s)));
      if (event.event) yield [event.id, event.event, JSON.parse(event.data)];
    }
  }
}

// Returns how the run ended; a lost connection is taken up where it broke off.
async function say(message) {
  let [path, headers] = ["/chat", { "Idempotency-Key": crypto.randomUUID() }];
  let body = JSON.stringify({ message, stream: true });
  for (;;) {
    try {
      for await (const [id, name, data] of events(path, headers, body)) {
        if (name === "start") [path, body] = [`/chat/${data.conversation_id}/runs/${data.run_id}/events`, undefined];
        if (name === "chunk") process.stdout.write(data.text);
        if (name === "done") return data;
        headers = { "Last-Event-ID": id };
      }
    } catch (error) {
      if (error.status && error.status !== 503) throw error;
    }
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
}

console.log(`\n[${(await say(process.argv.slice(2).join(" "))).status}]`);
