// @ai-sdk/openai in its default mode: it refers to what was said before by item_reference, and never sends it again.
import { createOpenAI } from '@ai-sdk/openai';
import { generateText } from 'ai';

const { url, key, first, second } = JSON.parse(process.env.DOOR);
const sent = [];
const openai = createOpenAI({
  baseURL: url,
  apiKey: key,
  fetch: async (address, init) => {
    sent.push(JSON.parse(init.body).input);
    return fetch(address, init);
  },
});
const model = openai('picoclaw');
const messages = [{ role: 'user', content: first }];
const begun = await generateText({ model, messages });
messages.push(...begun.response.messages, { role: 'user', content: second });
const more = await generateText({ model, messages });
console.log(JSON.stringify({ texts: [begun.text, more.text], kinds: sent.map((input) => input.map((item) => item.type ?? item.role)) }));
